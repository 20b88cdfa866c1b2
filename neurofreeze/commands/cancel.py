"""neurofreeze cancel: end a run's job, or all jobs of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neurofreeze.commands.settings import compose
from neurofreeze.config.commands import FolderConfig
from neurofreeze.console import say
from neurofreeze.launcher.folders import run_folders
from neurofreeze.launcher.submitted import Submitted


def main(overrides: Sequence[str]) -> int:
    """Cancel what has not ended; prints what became of each run."""
    return compose("cancel", overrides, _cancel, "cancel", needs_folder=False)


def _cancel(config: FolderConfig, _: Path, __: str) -> int:
    for folder in run_folders(Path(config.run)):
        job = Submitted(folder)
        say(f"{folder}: {f'{job.name} cancelled' if job.cancel() else 'nothing to cancel'}")
    return 0
