"""Run folders as the stages leave them, without the hours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neurofreeze.config.schema import Config
from neurofreeze.stages.context import Run


def evaluated(refused: int, over: int = 2, margin: float = 1.0, loss: float = 2.0) -> dict[str, Any]:
    """The result of an evaluation of ten harmful and five harmless requests."""
    return {
        "refused": [place < refused for place in range(10)],
        "over_refused": [place < over for place in range(5)],
        "degenerate": [False] * 15,
        "margins": [margin - 0.5, margin + 0.5],
        "domain_losses": [loss - 0.25, loss + 0.25],
        "general_losses": [3.0],
        "opening_words": ["No"] * 15,
    }


def trained(frozen: int = 0, loss: float = 1.5) -> dict[str, Any]:
    """The result of two training steps."""
    losses = [[1, loss + 1], [2, loss]]
    return {"losses": losses, "seconds": 2.5, "frozen_neurons": frozen, "frozen_elements": 100 * frozen}


def complete(run: Run, stage: str, result: dict[str, Any]) -> None:
    """Leave a stage as if it had run."""
    run.folder.run(stage, {}, lambda: result)


def finished(folder: Path, refusals: dict[str, int], **settings: Any) -> Run:
    """A run with all its stages; `refusals` says how many of ten requests each arm refuses, 15 % being frozen."""
    arms = [arm for arm in refusals if arm != "start"] or ["none"]
    run = Run(Config(**{"arms": arms, **settings}), folder)
    complete(run, "select", {"neurons": 15, "total": 100, "groups": {}, "search": []})
    for name, count in refusals.items():
        frozen = 0 if name in ("start", "none") else 15
        if name != "start":
            complete(run, f"train-{name}", trained(frozen))
        if frozen:
            complete(run, f"verify-{name}", {"frozen": 1500, "changed": 0, "fingerprint": "0f"})
        complete(run, f"evaluate-{name}", evaluated(count, loss=2.0 + 0.1 * count))
    return run
