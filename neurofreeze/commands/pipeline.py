"""What the commands of a run share: settings, a run folder that holds them, and where the work is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neurofreeze.commands.settings import compose
from neurofreeze.config.schema import Config
from neurofreeze.launcher.job import Job


def submit(command: str, overrides: Sequence[str]) -> int:
    """Compose the settings and do the command's work where `cluster` says; returns the exit code."""

    def task(config: Config, folder: Path, text: str) -> int:
        from neurofreeze.launcher.submit import submit

        return submit(Job(command, folder, config, text, tuple(overrides)))

    return compose(command, overrides, task, sweeps=True)
