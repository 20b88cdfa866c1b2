"""Job: one command with its settings and run folder, as files that ranks on any node read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from neurofreeze.config.schema import Config
from neurofreeze.errors import RunError
from neurofreeze.files import write_atomically

SETTINGS = "resolved.yaml"
FILE = "job.json"
COMMANDS = ("run", "select", "train", "evaluate", "report")  # those that jobs can be


@dataclass(frozen=True)
class Job:
    """A command to run in a folder.

    Attributes:
        command: such as "train"; a module of neurofreeze.commands with a function `work`.
        folder: of the run.
        config: its settings, checked.
        settings: the same as YAML.
        overrides: as given on the command line, for the report.
    """

    command: str
    folder: Path
    config: Config
    settings: str
    overrides: tuple[str, ...] = ()

    def save(self) -> None:
        """Write resolved.yaml and job.json, from which `load` makes the same job."""
        write_atomically(self.folder / SETTINGS, self.settings.encode())
        content = {"command": self.command, "overrides": self.overrides}
        write_atomically(self.folder / FILE, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Job:
        """The job that `save` left.

        Raises:
            RunError: if there is none, or it is not one.
            ConfigError: if its settings are out of range.
        """
        try:
            content = json.loads((folder / FILE).read_text(encoding="utf-8"))
            settings = (folder / SETTINGS).read_text(encoding="utf-8")
            command, overrides = content["command"], tuple(content["overrides"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder} holds no job that was submitted ({error!r}); submit it again") from error
        return cls(command, folder, typed(settings), settings, overrides)


def typed(settings: str) -> Config:
    """Settings of a run from YAML.

    Raises:
        ConfigError: if a value is out of range.
        OmegaConfBaseException: if a key is unknown or a value of the wrong type.
    """
    config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(settings)))
    return config
