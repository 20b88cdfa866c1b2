"""What is shown is what was said: brackets are those of settings, folders and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from neurofreeze.commands.status import table
from neurofreeze.console import console, say
from neurofreeze.launcher.state import Status

TEXT = "arms=[none,safety] data.train=[/data/a.jsonl] :warning:"


def test_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    say(TEXT)
    assert capsys.readouterr().out == f"{TEXT}\n"


def test_brackets_in_a_table_too(capsys: pytest.CaptureFixture[str]) -> None:
    console.print(table([Status(Path("a"), None, "failed", "[/data] is [not] there")]), width=120)
    assert "failed: [/data] is [not] there" in capsys.readouterr().out
