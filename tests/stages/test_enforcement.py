"""A run's two enforcements: the same neurons stay frozen, by masked gradients or by selective layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neurofreeze import verify
from neurofreeze.checkpoints import open_weights
from neurofreeze.stages.context import read_json
from tests.stages.runs import neurofreeze

pytestmark = pytest.mark.slow

_ARM = ("arms=[random]", "fraction=0.6", "method=top", "training.learning_rate=1e-3")


def test_both_enforcements_train_the_same_model(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for enforcement in ("mask", "auto"):
        folder = tmp_path / enforcement
        for command in ("select", "train"):
            assert neurofreeze(command, tiny_checkpoint, folder, *_ARM, f"training.enforcement={enforcement}") == 0
    assert "train random: enforced by selective: " in " ".join(capsys.readouterr().out.split())
    results = [read_json(tmp_path / name / "stages" / "train-random.json")["result"] for name in ("mask", "auto")]
    assert [result["enforcement"] for result in results] == ["mask", "selective"]
    assert results[0]["fingerprint"] == results[1]["fingerprint"]
    assert results[1]["optimized"] < results[0]["optimized"]
    arms = [tmp_path / name / "arms" / "random" for name in ("mask", "auto")]
    assert verify(tiny_checkpoint, arms[1], tmp_path / "auto" / "selection" / "random").changed == 0
    with open_weights(arms[0]) as masked, open_weights(arms[1]) as selective:
        assert list(masked) == list(selective)
        for name in masked:
            torch.testing.assert_close(masked[name].float(), selective[name].float(), rtol=0, atol=2e-3)


def test_an_unknown_enforcement_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert neurofreeze("train", tiny_checkpoint, tmp_path, "training.enforcement=none") != 0
    assert "expected auto, mask or selective" in capsys.readouterr().err


def test_8_bit_optimizers_need_selective_layers(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = (*_ARM, "training.optimizer=adamw_8bit")
    assert neurofreeze("select", tiny_checkpoint, tmp_path, *arm) == 0
    assert neurofreeze("train", tiny_checkpoint, tmp_path, *arm, "training.enforcement=mask") != 0
    assert "training.enforcement=selective" in capsys.readouterr().err
    assert neurofreeze("train", tiny_checkpoint, tmp_path, *arm, "training.enforcement=selective") == 0
    found = verify(tiny_checkpoint, tmp_path / "arms" / "random", tmp_path / "selection" / "random")
    assert found.ok, str(found)
    assert found.trainable_changed > 10_000
