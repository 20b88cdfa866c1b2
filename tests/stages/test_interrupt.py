"""Ctrl-C in the middle of training: a checkpoint is left, and the same command ends where it would have ended."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.mask import NeuronMask
from neurofreeze.stages import evaluate
from neurofreeze.stages.folder import RunFolder
from neurofreeze.verification import verify

from .runs import STEPS, metrics, neurofreeze, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Send this process a SIGINT while a given step of a given arm is being logged."""
    original = RunFolder.log

    def at(arm: str, step: int) -> None:
        def log(self: RunFolder, row: dict[str, Any]) -> None:
            original(self, row)
            if row.get("arm") == arm and row["global_step"] == step:
                monkeypatch.setattr(RunFolder, "log", original)
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(RunFolder, "log", log)

    return at


def spoilt(copied: Path, arm: str) -> Path:
    """The run with one arm still to be trained."""
    (copied / "stages" / f"train-{arm}.json").unlink()
    for path in sorted((copied / "arms" / arm).iterdir()):
        path.unlink()
    (copied / "arms" / arm).rmdir()
    (copied / "metrics.jsonl").unlink()
    return copied


@pytest.mark.parametrize("arm", ["none", "safety"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    arm: str, ctrl_c: Any, copied: Path, finished: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoilt(copied, arm)
    ctrl_c(arm, 1)
    assert neurofreeze("run", tiny_checkpoint, folder) == 130
    assert "interrupted; saved at step 2; the same command goes on from here" in capsys.readouterr().err
    assert not (folder / "arms" / arm).exists()
    assert not (folder / "result.json").exists(), "the result of the run before says nothing of this one"
    assert [path.name for path in (folder / "arms" / f"{arm}.unfinished").glob("checkpoint-*")] == ["checkpoint-2"]

    assert neurofreeze("run", tiny_checkpoint, folder) == 0
    assert "going on from the checkpoint of step 2" in capsys.readouterr().out
    assert [row["global_step"] for row in metrics(folder) if row["stage"] == "train"] == list(range(1, STEPS + 1))
    assert weights(folder / "arms" / arm) == weights(finished / "arms" / arm)
    assert not (folder / "arms" / f"{arm}.unfinished").exists()


def test_frozen_bits_survive_the_interruption(ctrl_c: Any, copied: Path, tiny_checkpoint: Path) -> None:
    folder = spoilt(copied, "safety")
    ctrl_c("safety", 2)
    assert neurofreeze("train", tiny_checkpoint, folder) == 130
    (checkpoint,) = (folder / "arms" / "safety.unfinished").glob("checkpoint-*")
    for tuned in (checkpoint, folder / "arms" / "safety"):
        if tuned != checkpoint:
            assert neurofreeze("train", tiny_checkpoint, folder) == 0
        found = verify(tiny_checkpoint, tuned, folder / "selection" / "safety")
        assert found.ok
        assert found.trainable_changed


def test_ctrl_c_after_the_last_step_loses_nothing(
    ctrl_c: Any, copied: Path, finished: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoilt(copied, "safety")
    ctrl_c("safety", STEPS)
    assert neurofreeze("train", tiny_checkpoint, folder) == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err
    assert neurofreeze("train", tiny_checkpoint, folder) == 0
    assert "train-safety: complete, reused" in capsys.readouterr().out
    assert weights(folder / "arms" / "safety") == weights(finished / "arms" / "safety")


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(
    ctrl_c: Any, copied: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoilt(copied, "safety")
    ctrl_c("safety", 1)
    assert neurofreeze("train", tiny_checkpoint, folder) == 130
    other = ["training.learning_rate=1e-3", "arms=[safety]"]
    assert neurofreeze("train", tiny_checkpoint, folder, *other) == 1
    assert "(training.learning_rate was 0.005, is 0.001); go on with those it had" in capsys.readouterr().err
    assert neurofreeze("train", tiny_checkpoint, folder, *other, "overwrite=true") == 0
    assert neurofreeze("select", tiny_checkpoint, tmp_path / "fresh") == 0
    assert neurofreeze("train", tiny_checkpoint, tmp_path / "fresh", *other) == 0
    assert weights(folder / "arms" / "safety") == weights(tmp_path / "fresh" / "arms" / "safety")


def test_a_checkpoint_of_another_mask_is_not_gone_on_from(ctrl_c: Any, copied: Path, tiny_checkpoint: Path) -> None:
    folder = spoilt(copied, "safety")
    ctrl_c("safety", 1)
    assert neurofreeze("train", tiny_checkpoint, folder) == 130
    larger = ["fraction=0.3", "overwrite=true", "arms=[safety]"]
    assert neurofreeze("run", tiny_checkpoint, folder, *larger) == 0
    mask = NeuronMask.from_pretrained(folder / "selection" / "safety")
    assert verify(tiny_checkpoint, folder / "arms" / "safety", mask).ok


def test_an_interrupted_evaluation_goes_on_to_the_same_outcomes(
    copied: Path,
    finished: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (copied / "stages" / "evaluate-safety.json").unlink()
    done: list[str] = []
    whole = evaluate.values

    def values(*given: Any, **options: Any) -> list[Any]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(given[3].what)
        return whole(*given, **options)

    monkeypatch.setattr(evaluate, "values", values)
    assert neurofreeze("run", tiny_checkpoint, copied) == 130
    capsys.readouterr()
    done.insert(0, "nothing is interrupted again")
    monkeypatch.setattr(
        evaluate, "values", lambda *given, **options: done.append(given[3].what) or whole(*given, **options)
    )
    assert neurofreeze("run", tiny_checkpoint, copied) == 0
    assert "evaluate safety: goes on after 3 of 5 batches that are done" in capsys.readouterr().out
    assert done[1:] == ["harmful", "lookalikes", "margins", "domain", "general"]
    results = [RunFolder(folder).result("evaluate-safety") for folder in (copied, finished)]
    assert results[0] == results[1]
    assert not list((copied / "stages").glob("*.unfinished"))
