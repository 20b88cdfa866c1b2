"""Where the YAML files of conf/ are: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

import neurofreeze
from neurofreeze.errors import ConfigError


def conf_folder() -> Path:
    """The absolute path of conf/.

    Raises:
        ConfigError: if it is in neither place.
    """
    package = Path(neurofreeze.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/config.yaml in {package} or beside it; reinstall neurofreeze")
