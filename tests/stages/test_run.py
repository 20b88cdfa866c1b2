"""`neurofreeze run` from start to report: what it leaves, and that it does nothing twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurofreeze.mask import NeuronMask
from neurofreeze.stages.report import LABELS
from neurofreeze.verification import verify, weights_fingerprint

from .runs import ARMS, STEPS, metrics, neurofreeze, weights


def test_the_files_of_a_run(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    expected = {"resolved.yaml", "metrics.jsonl", "verification.json", "report.html", "selection/groups.safetensors"}
    expected |= {f"selection/{arm}/neuron_mask.safetensors" for arm in ("random", "safety")}
    expected |= {f"arms/{arm}/model.safetensors" for arm in ARMS}
    assert expected <= files
    assert not [name for name in files if "unfinished" in name or "/." in name]


def test_resolved_settings_repeat_the_run(finished: Path, tiny_checkpoint: Path) -> None:
    resolved = OmegaConf.load(finished / "resolved.yaml")
    assert resolved.model == str(tiny_checkpoint)
    assert (resolved.fraction, resolved.training.steps, resolved.alignment.mode) == (0.15, STEPS, "never")
    assert resolved.data.train == "bundled:retail_bank/train"


@pytest.mark.parametrize("arm", ARMS)
def test_every_step_of_every_arm_is_logged(finished: Path, arm: str) -> None:
    rows = [row for row in metrics(finished) if row["stage"] == "train" and row.get("arm") == arm]
    assert [row["global_step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["stage"] == "train" and 0 < row["loss"] < 20 for row in rows)


def test_arms_start_from_the_same_model_on_the_same_batch(finished: Path) -> None:
    first = {row["arm"]: row["loss"] for row in metrics(finished) if row.get("global_step") == 1}
    assert len(first) == 3
    assert len(set(first.values())) == 1


def test_frozen_bits_are_those_of_the_model(finished: Path, tiny_checkpoint: Path) -> None:
    found = json.loads((finished / "verification.json").read_text(encoding="utf-8"))
    assert found["ok"] is True
    assert found["changed"] == 0
    assert found["frozen"] > 1000
    assert found["trainable_changed"] > found["trainable"] / 2, "the fine-tune must have changed something"
    for arm in ("random", "safety"):
        assert verify(tiny_checkpoint, finished / "arms" / arm, finished / "selection" / arm).ok
    assert not verify(tiny_checkpoint, finished / "arms" / "none", finished / "selection" / "safety").ok


def test_arms_are_ordinary_checkpoints_in_the_model_s_precision(finished: Path) -> None:
    for arm in ARMS:
        model = AutoModelForCausalLM.from_pretrained(finished / "arms" / arm, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(finished / "arms" / arm)
        assert model.dtype == torch.bfloat16
        assert tokenizer.chat_template


def test_the_control_has_as_many_neurons_at_every_site(finished: Path) -> None:
    safety, random = (NeuronMask.from_pretrained(finished / "selection" / name) for name in ("safety", "random"))
    assert safety != random
    assert {n: int(b.sum()) for n, b in safety.bits.items()} == {n: int(b.sum()) for n, b in random.bits.items()}
    assert safety.count == round(0.15 * 12) + round(0.15 * 140)


def test_masks_say_what_they_were_made_from(finished: Path, tiny_checkpoint: Path) -> None:
    for name in ("safety", "random"):
        mask = NeuronMask.from_pretrained(finished / "selection" / name)
        assert mask.config.model == str(tiny_checkpoint)
        assert mask.config.fingerprint == weights_fingerprint(tiny_checkpoint, mask)
        assert set(mask.config.calibration) == ({"safety", "utility"} if name == "safety" else set())


def test_frozen_neurons_are_exclusive_or_complex_units(finished: Path) -> None:
    groups = load_file(finished / "selection" / "groups.safetensors")
    mask = NeuronMask.from_pretrained(finished / "selection" / "safety")
    frozen = np.concatenate([groups[name][bits] for name, bits in mask.bits.items()])
    assert set(frozen) <= {2, 3}
    assert sum(len(codes) for codes in groups.values()) == mask.total


def test_evaluation_covers_the_start_and_every_arm(finished: Path) -> None:
    for name in ("start", *ARMS):
        result = json.loads((finished / "stages" / f"evaluate-{name}.json").read_text(encoding="utf-8"))["result"]
        assert [len(values) for values in result.values()] == [4, 4, 8, 4, 4, 4, 8]
    report = (finished / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ").lower()
    assert all(label in report for label in ("before fine-tuning", *(LABELS[arm] for arm in ARMS)))


def test_a_second_run_reuses_every_stage(
    copied: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    split = ["training.batch_size=1", "training.gradient_accumulation=2"]  # of what did not fit into memory, say
    assert neurofreeze("run", tiny_checkpoint, copied, *split) == 0
    out = capsys.readouterr().out
    stages = [path.stem for path in (copied / "stages").iterdir()]
    assert len(stages) == 11
    assert all(f"{stage}: complete, reused" in out for stage in stages)
    after = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"report.html", "resolved.yaml", "job.json", "result.json"}
    assert before.keys() == after.keys()


def test_a_lost_arm_alone_is_trained_again_to_the_same_bits(
    copied: Path, finished: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "arms" / "safety")
    assert neurofreeze("run", tiny_checkpoint, copied, "training.save_steps=2", "training.check_every=3") == 0
    out = capsys.readouterr().out
    assert "train-random: complete, reused" in out
    assert "train-safety: complete, reused" not in out
    assert weights(copied / "arms" / "safety") == weights(finished / "arms" / "safety")


@pytest.mark.slow
def test_stages_alone_give_what_the_run_gives(finished: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for command in ("select", "train", "evaluate", "report"):
        assert neurofreeze(command, tiny_checkpoint, folder) == 0
    for arm in ("random", "safety"):
        masks = [NeuronMask.from_pretrained(path / "selection" / arm) for path in (folder, finished)]
        assert masks[0] == masks[1]
        assert masks[0].config == masks[1].config
    for arm in ARMS:
        assert weights(folder / "arms" / arm) == weights(finished / "arms" / arm)
    assert (
        json.loads((folder / "stages" / "evaluate-safety.json").read_text(encoding="utf-8"))["result"]
        == (json.loads((finished / "stages" / "evaluate-safety.json").read_text(encoding="utf-8"))["result"])
    )
    assert "bit-identical" in (folder / "report.html").read_text(encoding="utf-8")
