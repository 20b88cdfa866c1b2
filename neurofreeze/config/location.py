"""Where conf/ and launch/ are: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

import neurofreeze
from neurofreeze.errors import ConfigError


def conf_folder() -> Path:
    """The absolute path of conf/, the YAML files of the settings.

    Raises:
        ConfigError: if it is in neither place.
    """
    return _holding("conf", "config.yaml")


def launch_folder() -> Path:
    """The absolute path of launch/, the templates of batch jobs and the configurations of launchers.

    Raises:
        ConfigError: if it is in neither place.
    """
    return _holding("launch", "slurm/job.sbatch.j2")


def _holding(name: str, file: str) -> Path:
    package = Path(neurofreeze.__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if (folder / file).is_file():
            return folder
    raise ConfigError(f"no {name}/{file} in {package} or beside it; reinstall neurofreeze")
