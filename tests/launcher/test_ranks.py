"""Jobs on two ranks that torchrun starts, on the CPU over gloo: what they train is what one process trains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import neurofreeze as nf
from neurofreeze.checkpoints import open_weights
from neurofreeze.commands.settings import compose_once
from neurofreeze.launcher.job import Job
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.stages.context import read_json
from tests.stages.runs import metrics, neurofreeze, settings

pytestmark = pytest.mark.slow

# One epoch of 220 examples: the last batch has 28, so that the second rank has none of them. Beside them every rank
# has rows of both objectives, and what belongs to no neuron is held too.
SETTINGS = (
    "replay=refusals",
    "anchor=openings",
    "freeze=rest",
    "arms=[none,safety]",
    "training.bf16=false",
    "training.steps=null",
    "training.max_length=128",
    "training.batch_size=64",
    "validate=none",
)
TWO_RANKS = ("cluster=torchrun", "cluster.ranks_per_node=2")
TIMEOUT = 240  # seconds
# Recognised by the freezer, by other means than the trainer's own check.
ENGINES = {
    "ddp": "plain",
    "fsdp2": "fsdp2",
    "zero2": "deepspeed DeepSpeedZeroOptimizer",
    "zero3": "deepspeed DeepSpeedZeroOptimizer_Stage3",
}


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in float32, so that nothing is rounded when a fine-tune is saved."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    load_model(tiny_checkpoint, torch.float32).save_pretrained(folder)
    load_tokenizer(tiny_checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def selected(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which nothing is trained yet; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "selected"
    assert neurofreeze("select", base, folder, *SETTINGS) == 0
    return folder


@pytest.fixture(scope="module")
def alone(base: Path, selected: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that one process trained."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    shutil.copytree(selected, folder)
    assert neurofreeze("train", base, folder, *SETTINGS) == 0
    return folder


def start(
    command: str, base: Path, folder: Path, *overrides: str, words: Sequence[str] = ("-m", "neurofreeze.launcher.rank")
) -> tuple[int, str]:
    """Run a job on two ranks; returns torchrun's exit code and what all of them wrote."""
    given = [*settings(base, folder), *SETTINGS, *overrides]
    config, _, text = compose_once(given)
    Job(command, folder, config, text, tuple(given)).save()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w+", encoding="utf-8") as log:
        started = subprocess.Popen([*torchrun, *words, str(folder)], env=environment, stdout=log, stderr=log)
        try:
            code = started.wait(TIMEOUT)
        finally:
            started.terminate()  # it ends its ranks
            started.wait()
        log.seek(0)
        return code, log.read()


def trained(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "stages" / "train-safety.json")["result"]
    return found


@pytest.mark.parametrize("backend", ENGINES)
def test_a_run_on_two_ranks_is_the_run_of_one_process(
    backend: str, base: Path, selected: Path, alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(selected, folder)
    code, log = start("run", base, folder, *TWO_RANKS, f"backend={backend}")
    assert code == 0, log[-6000:]

    one, two = trained(alone), trained(folder)
    assert (two["backend"], two["ranks"], two["engine"]) == (backend, 2, ENGINES[backend])
    assert one["fingerprint"] == two["fingerprint"]
    assert [step for step, _ in two["losses"]] == [1, 2, 3, 4]
    assert [loss for _, loss in two["losses"]] == pytest.approx([loss for _, loss in one["losses"]], abs=1e-5)
    outcome = nf.verify(base, folder / "arms" / "safety", folder / "selection" / "safety")
    assert outcome.ok
    assert outcome.frozen > 1_000
    assert outcome.tuned_fingerprint == two["fingerprint"]
    with (
        open_weights(base) as before,
        open_weights(alone / "arms" / "safety") as first,
        open_weights(folder / "arms" / "safety") as second,
    ):
        assert list(first) == list(second)
        assert max(float((first[name] - before[name]).abs().max()) for name in first) > 1e-2
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-5)

    # What rank 0 does for all is done and said once, and libraries say nothing.
    assert (folder / "report.html").is_file()
    assert log.count("train safety ...") == log.count("report: ") == 1
    assert "examples/s" not in log
    steps = [row["global_step"] for row in metrics(folder) if row.get("arm") == "safety" and "loss" in row]
    assert steps == [1, 2, 3, 4]


def test_a_rank_that_fails_ends_all_with_its_own_error(base: Path, selected: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(selected, folder)
    script = str(Path(__file__).with_name("failing_rank.py"))
    started = time.monotonic()
    code, log = start("train", base, folder, *TWO_RANKS, "backend=ddp", words=[script])
    assert code != 0
    assert time.monotonic() - started < TIMEOUT / 2, "the other rank was waited for"
    assert log.count(f"neurofreeze: {base} cannot be read here\n") == 1, log
    assert "neurofreeze: unexpected" not in log
    assert not (folder / "stages" / "train-safety.json").exists()


def test_what_rank_0_refuses_is_said_once(base: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    code, log = start("train", base, tmp_path / "run", *TWO_RANKS, "backend=ddp")
    assert code != 0
    assert log.count("neurofreeze: ") == log.count("has no complete select stage; run `neurofreeze select` first") == 1


def test_other_ranks_than_configured_are_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    code, log = start("train", base, tmp_path / "run", "backend=ddp")
    assert code != 0
    assert log.count("neurofreeze: ") == log.count("WORLD_SIZE is 2, but cluster has nodes=1 and ranks_per_node=1") == 1
