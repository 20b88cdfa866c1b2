"""launch: `neurofreeze COMMAND key=value ...` in the background, from Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from neurofreeze.errors import ConfigError
from neurofreeze.launcher.job import COMMANDS, Job
from neurofreeze.launcher.submit import start
from neurofreeze.launcher.submitted import Submitted


def launch(command: str, overrides: Sequence[str] = (), **settings: Any) -> Submitted:
    """Start a command where its settings say and return at once.

        job = nf.launch("train", ["cluster=slurm", "backend=fsdp2"], seed=1)
        job.wait()

    Args:
        command: run, select, train, evaluate or report.
        overrides: settings as on the command line.
        settings: more of them, those of the top level, by name.

    Returns:
        The job: a Slurm job, or a process of this machine that writes to `logs/` in its folder.

    Raises:
        ConfigError: if a setting is unknown, of the wrong type or out of range.
        RunError: if Slurm is not there or refuses the job, or the folder has a job that has not ended.
    """
    from neurofreeze.commands.settings import compose_once

    if command not in COMMANDS:
        raise ConfigError(f"command is {command!r}; expected one of {', '.join(COMMANDS)}")
    words = [*overrides, *(f"{name}={_text(value)}" for name, value in settings.items())]
    config, folder, text = compose_once(words)
    return start(Job(command, folder, config, text, tuple(words)))


def _text(value: Any) -> str:
    # As Hydra would read it; to a word it adds nothing.
    return json.dumps(value) if value is None or isinstance(value, bool | int | float | list) else str(value)
