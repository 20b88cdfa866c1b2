"""A tracker that may fail: training goes on with metrics.jsonl alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from neurofreeze.console import say
from neurofreeze.tracking.base import Tracker


class Guarded:
    """Hands on to the tracker that `build` makes, until it fails for the first time; then says so once.

    Args:
        name: of the tracker, for the warning.
        build: starts it.
    """

    def __init__(self, name: str, build: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._try(lambda: setattr(self, "_tracker", build()))

    def log(self, row: dict[str, Any]) -> None:
        """Hand on a row."""
        self._with(lambda tracker: tracker.log(row))

    def artifact(self, name: str, path: Path, kind: str) -> None:
        """Hand on a file or folder."""
        self._with(lambda tracker: tracker.artifact(name, path, kind))

    def finish(self, code: int) -> None:
        """Hand on the end."""
        self._with(lambda tracker: tracker.finish(code))
        self._tracker = None

    def _with(self, call: Callable[[Tracker], None]) -> None:
        tracker = self._tracker
        if tracker is not None:
            self._try(lambda: call(tracker))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a library over a network comes up with
            self._tracker = None
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"warning: {self._name} failed ({reason[:200]}); the run goes on, its numbers are in metrics.jsonl")
