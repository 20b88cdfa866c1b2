"""What a check of the choice of neurons found, as long as it is about the choice that is there."""

from __future__ import annotations

from typing import Any

from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import settings_digest


def checked(run: Run, stage: str) -> dict[str, Any] | None:
    """What the stage left; None if the masks at hand were not checked so.

    What was found about a choice that has been made anew since is about other neurons.
    """
    settings, selected = run.folder.settings(stage), run.folder.settings("select")
    if settings is None or selected is None or settings["selection"] != settings_digest(selected):
        return None
    return run.folder.required(stage, "select")
