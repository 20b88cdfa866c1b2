"""`neurofreeze run method=nest` from rows to a report on the tiny checkpoint: what it leaves, and leaves alone."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurofreeze.cli import main
from neurofreeze.mask import NeuronMask
from neurofreeze.methods.nest.choice import Updates
from neurofreeze.methods.nest.elsewhere import changed_elsewhere
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages.folder import RunFolder
from neurofreeze.verification import verify
from tests import tiny

from .runs import STEPS, metrics, neurofreeze, weights

pytestmark = pytest.mark.slow

ARMS = ("nest", "full", "lora")
# A random model's probes have no outstanding weights; vectors must move far enough to survive rounding to bfloat16.
SETTINGS = ("method=nest", "method.nest.threshold=0.5", "method.nest.clusters=3", "method.nest.learning_rates.nest=0.1")


def run(command: str, model: Path, folder: Path, *overrides: str) -> int:
    return neurofreeze(command, model, folder, *SETTINGS, *overrides)


def result(folder: Path, stage: str) -> Any:
    return json.loads((folder / "stages" / f"{stage}.json").read_text(encoding="utf-8"))["result"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "nest"
    assert run("run", tiny_checkpoint, folder) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def updates(finished: Path) -> Updates:
    return Updates.load(finished / "selection" / "updates.safetensors")


def test_rows_of_a_cluster_share_their_vector(updates: Updates, finished: Path) -> None:
    assert {name.split(".")[4] for name in updates.by_weight} == {"gate_proj", "up_proj"}
    assert updates.vectors < updates.rows
    assert all(own.count <= 3 for own in updates.by_weight.values())
    assert (result(finished, "select")["rows"], result(finished, "select")["vectors"]) == (
        updates.rows,
        updates.vectors,
    )


def test_nothing_but_those_rows_changed(updates: Updates, finished: Path, tiny_checkpoint: Path) -> None:
    before, after = weights(tiny_checkpoint), weights(finished / "arms" / "nest")
    assert before.keys() == after.keys()
    for name, old in before.items():
        rows = updates.by_weight[name].rows.tolist() if name in updates.by_weight else []
        count = {"gate_proj": 70, "up_proj": 70}.get(name.split(".")[-2], 1)
        new = after[name]
        step = len(old) // count
        changed = [
            row for row in range(count) if old[row * step : row * step + step] != new[row * step : (row + 1) * step]
        ]
        assert changed == rows, name
    assert changed_elsewhere(tiny_checkpoint, finished / "arms" / "nest", updates) == 0
    assert changed_elsewhere(tiny_checkpoint, finished / "arms" / "full", updates) > 0


def test_the_neurons_without_vectors_are_verified(finished: Path, tiny_checkpoint: Path, updates: Updates) -> None:
    mask = NeuronMask.from_pretrained(finished / "selection" / "nest")
    assert mask == updates.untouched(NeuronMap.of(tiny.config("llama", vocab_size=400, max_position_embeddings=512)))
    found = verify(tiny_checkpoint, finished / "arms" / "nest", mask)
    assert found.ok
    assert found.trainable_changed
    assert result(finished, "verify-nest")["changed"] == 0


def test_verify_finds_the_arm_in_the_run_folder(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"hydra.run.dir={copied}"]) == 0
    assert f"{copied / 'arms' / 'nest'}: " in capsys.readouterr().out


def test_arms_train_what_they_say(finished: Path, updates: Updates) -> None:
    optimized = {arm: result(finished, f"train-{arm}")["optimized"] for arm in ARMS}
    every = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(finished / "arms" / "full").parameters())
    assert optimized["nest"] == updates.vectors * 36
    assert optimized["full"] == every
    # q and o 36 x 36, k and v 36 x 12, gate and up 36 x 70, down 70 x 36: r * (in + out) each
    assert optimized["lora"] == 2 * 8 * (2 * 72 + 2 * 48 + 3 * 106)


def test_arms_see_the_same_examples_in_the_same_order(finished: Path) -> None:
    rows = {arm: [row for row in metrics(finished) if row.get("arm") == arm] for arm in ARMS}
    assert all([row["global_step"] for row in own] == list(range(1, STEPS + 1)) for own in rows.values())
    assert len({own[0]["loss"] for own in rows.values()}) == 1
    assert len({own[-1]["loss"] for own in rows.values()}) == 3
    assert len({own[-1]["epoch"] for own in rows.values()}) == 1


def test_arms_are_ordinary_checkpoints(finished: Path, tiny_checkpoint: Path) -> None:
    for arm in ARMS:
        model = AutoModelForCausalLM.from_pretrained(finished / "arms" / arm, dtype="auto")
        assert (type(model).__name__, model.dtype) == ("LlamaForCausalLM", torch.bfloat16)
        assert AutoTokenizer.from_pretrained(finished / "arms" / arm).chat_template
        assert weights(finished / "arms" / arm).keys() == weights(tiny_checkpoint).keys()
        assert weights(finished / "arms" / arm) != weights(tiny_checkpoint)


def test_the_report_has_every_arm_and_the_data_that_was_used(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    for said in ("before fine-tuning", "NeST", "full fine-tuning", "LoRA", "data.alignment", "data.harmful"):
        assert said in page
    assert "data.train</" not in page
    assert "bit-identical" in page


def test_settings_are_written_out(finished: Path) -> None:
    resolved = OmegaConf.load(finished / "resolved.yaml")
    assert list(resolved.arms) == list(ARMS)
    assert (resolved.alignment.mode, resolved.method.name, resolved.training.steps) == ("never", "nest", STEPS)
    assert resolved.name == "quickstart"


def test_a_second_run_reuses_every_stage(
    copied: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", tiny_checkpoint, copied) == 0
    out = capsys.readouterr().out
    stages = {path.stem for path in (copied / "stages").iterdir()}
    of_arms = {f"{what}-{arm}" for what in ("train", "evaluate") for arm in ARMS}
    assert stages == {"align", "select", "verify-nest", "evaluate-start"} | of_arms
    assert all(f"{stage}: complete, reused" in out for stage in stages)


def test_stages_alone_give_what_the_run_gives(finished: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for command in ("select", "train", "evaluate"):
        assert run(command, tiny_checkpoint, tmp_path / "run", "arms=[nest]") == 0
    assert weights(tmp_path / "run" / "arms" / "nest") == weights(finished / "arms" / "nest")
    assert result(tmp_path / "run", "evaluate-nest") == result(finished, "evaluate-nest")


@pytest.mark.parametrize("arm", ["nest", "lora"])
def test_an_interrupted_arm_goes_on_to_the_same_bits(
    arm: str, copied: Path, finished: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "stages" / f"train-{arm}.json").unlink()
    shutil.rmtree(copied / "arms" / arm)
    original = RunFolder.log

    def log(self: RunFolder, row: dict[str, Any]) -> None:
        original(self, row)
        if row["global_step"] == 2:
            monkeypatch.setattr(RunFolder, "log", original)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunFolder, "log", log)
    assert run("train", tiny_checkpoint, copied) == 130
    assert not (copied / "arms" / arm).exists()
    assert run("train", tiny_checkpoint, copied) == 0
    assert weights(copied / "arms" / arm) == weights(finished / "arms" / arm)


def test_a_vector_for_every_row(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert run("select", tiny_checkpoint, tmp_path, "method.nest.share=false") == 0
    own = Updates.load(tmp_path / "selection" / "updates.safetensors")
    assert own.vectors == own.rows > 10
    for found in own.by_weight.values():
        np.testing.assert_array_equal(found.vectors, np.arange(len(found.rows)))


def test_a_model_without_gates_is_refused(
    tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.model("gpt2", dtype=torch.bfloat16).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    assert run("select", tmp_path / "gpt2", tmp_path / "run") == 1
    assert "dense gated MLPs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("arms=[safety]", "['nest', 'full', 'lora']"),
        ("alignment.mode=auto", "trains on data.alignment itself"),
        ("validate=prune", "freezes no choice"),
        ("method.nest.clusters=1", "share=false for none"),
        ("method.nest.benign_share=1", "[0, 1)"),
        ("method.nest.learning_rates.lora=0", "above 0"),
        ("method.nest.lora_rank=0", "positive"),
        ("method.nest.threshold=-1", "not below 0"),
        ("+method.nest.probe.epoch=3", "strategy 'probe'"),
        ("data.alignment=[bundled:instructions/align]", "trains on refusals"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    override: str, said: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", tiny_checkpoint, tmp_path / "run", override) in (1, 2)
    assert said in capsys.readouterr().err


def test_other_methods_have_no_such_arms(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert neurofreeze("run", tiny_checkpoint, tmp_path / "run", "arms=[nest]") == 2
    assert "['none', 'random', 'safety']" in capsys.readouterr().err
