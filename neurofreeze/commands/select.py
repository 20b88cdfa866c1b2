"""neurofreeze select: find the safety neurons and draw the random control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neurofreeze.commands.pipeline import submit
from neurofreeze.console import say

if TYPE_CHECKING:
    from neurofreeze.stages.context import Run


def main(overrides: Sequence[str]) -> int:
    """Align if need be, then select; prints where the masks are."""
    return submit("select", overrides)


def work(run: Run, _: str) -> int:
    """Align if need be, select, validate."""
    from neurofreeze.stages import align, select, validate

    align.run(run)
    select.run(run)
    validate.run(run)
    for path in sorted((run.folder.path / "selection").iterdir()):
        say(f"selection: {path}")
    return 0
