"""Training on two nodes with two ranks each, under each engine: the same frozen bits, and what one process trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from neurofreeze.checkpoints import open_weights
from neurofreeze.cli import main
from neurofreeze.mask import NeuronMask
from neurofreeze.stages.rows import read_rows
from neurofreeze.verification import verify, weights_fingerprint
from tests.stages.runs import STEPS, neurofreeze

from .cluster import SlurmCluster

pytestmark = pytest.mark.slow

ARM = ("arms=[safety]", "training.batch_size=4", "training.bf16=false", "training.enforcement=mask")
# DDP with one torchrun a node, the others with one task a rank.
ENGINES = {"ddp": ["cluster.launch=torchrun"], "fsdp2": [], "zero2": [], "zero3": []}


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    for command in ("select", "train"):
        assert neurofreeze(command, tiny_checkpoint, folder, *ARM) == 0
    return folder


@pytest.mark.parametrize("backend", ENGINES)
def test_two_nodes_train_what_one_process_trains(
    slurm: SlurmCluster,
    tiny_checkpoint: Path,
    alone: Path,
    tmp_path: Path,
    backend: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(alone / "selection", folder / "selection")
    (folder / "stages").mkdir()
    for stage in ("align", "select"):
        shutil.copy(alone / "stages" / f"{stage}.json", folder / "stages")
    ranks = ["cluster=slurm", "cluster.nodes=2", "cluster.ranks_per_node=2", "cluster.cpus_per_rank=1"]
    waiting = ["cluster.wait=true", "cluster.poll_seconds=0.5"]
    overrides = [*ARM, f"backend={backend}", *ranks, *ENGINES[backend], *waiting]
    code = neurofreeze("train", tiny_checkpoint, folder, *overrides)
    assert code == 0, next(folder.glob("logs/*")).read_text(encoding="utf-8")[-4000:]

    tuned, single = folder / "arms" / "safety", alone / "arms" / "safety"
    mask = NeuronMask.from_pretrained(folder / "selection" / "safety")
    assert verify(tiny_checkpoint, tuned, mask).ok
    assert weights_fingerprint(tuned, mask) == weights_fingerprint(single, mask)
    with open_weights(tuned) as found, open_weights(single) as expected, open_weights(tiny_checkpoint) as start:
        assert set(found) == set(expected)
        moved = {name: (expected[name].float() - start[name].float()).abs().max() for name in expected}
        assert max(moved.values()) > 1e-2
        for name in found:
            torch.testing.assert_close(found[name].float(), expected[name].float(), rtol=0, atol=2e-3)
    losses = [
        {row["global_step"]: row["loss"] for row in read_rows(path / "metrics.jsonl") if "loss" in row}
        for path in (folder, alone)
    ]
    assert len(losses[0]) == STEPS
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)

    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert (result["command"], result["exit_code"]) == ("train", 0)
    capsys.readouterr()
    assert main(["status", str(folder)]) == 0
    shown = capsys.readouterr().out.split()
    assert {"complete", "safety", f"{STEPS}/{STEPS}", "intact"} <= set(shown)
