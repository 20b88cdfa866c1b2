"""The commands of a run that the documentation shows have settings that are there and go together."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from neurofreeze.commands.settings import compose_once

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^ *neurofreeze (?:run|select|train|evaluate) (.+)$", re.MULTILINE)
# What is the reader's own, or is for Hydra's command line alone.
LEFT_OUT = ("...", "--cfg", "--info", "hydra", "cluster=ours", "SEED")


def shown(page: Path) -> list[list[str]]:
    """The settings of each command, with the first value of what a sweep goes through."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    lines = [line for line in COMMAND.findall(text) if not any(part in line for part in LEFT_OUT)]
    commands = [shlex.split(line, comments=True) for line in lines]
    return [[_first(word) if "--multirun" in c else word for word in c if word != "--multirun"] for c in commands]


def _first(override: str) -> str:
    return override if "[" in override else override.partition(",")[0]


@pytest.mark.parametrize("page", [page for page in PAGES if shown(page)], ids=lambda page: page.name)
def test_settings_shown_go_together(page: Path) -> None:
    for overrides in shown(page):
        compose_once(overrides)
