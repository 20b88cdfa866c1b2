"""Ctrl-C while neurons are scored: the same command goes on at the next batch, to the same mask."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from neurofreeze.console import Stage
from neurofreeze.mask import NeuronMask

from .runs import neurofreeze


@pytest.mark.parametrize("strategy", ["wifv", "margin"])  # scored on each set by itself, and on one
def test_an_interrupted_selection_ends_in_the_same_mask(
    strategy: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    advance, told = Stage.advance, []

    def interrupting(bar: Stage) -> None:
        advance(bar)
        told.append(bar.name)
        if len(told) == stop_at:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Stage, "advance", interrupting)
    stop_at = 0
    assert neurofreeze("select", tiny_checkpoint, tmp_path / "whole", f"strategy={strategy}") == 0
    whole = list(told)
    told.clear()
    stop_at = len(whole) - 2  # on the utility set, where there are two
    assert neurofreeze("select", tiny_checkpoint, tmp_path / "run", f"strategy={strategy}") == 130
    assert (tmp_path / "run" / "selection" / "unfinished").is_dir()
    told.clear()
    stop_at = 0
    capsys.readouterr()
    assert neurofreeze("select", tiny_checkpoint, tmp_path / "run", f"strategy={strategy}") == 0
    assert told == whole  # the bar is filled for the batches behind it
    assert "going on after batch" in capsys.readouterr().out
    found, expected = (
        NeuronMask.from_pretrained(tmp_path / name / "selection" / "safety") for name in ("run", "whole")
    )
    assert found == expected
    for name, scores in (expected.scores or {}).items():
        assert (found.scores[name] == scores).all()
    assert not (tmp_path / "run" / "selection" / "unfinished").exists()
    assert found.config.strategy["chat_template"]["own"] is True
