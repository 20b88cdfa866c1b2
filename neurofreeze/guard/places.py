"""Where a command is to write, looked at before there is anything to write."""

from __future__ import annotations

import os
from pathlib import Path

from neurofreeze.config.checks import check


def require_folder(path: str, key: str) -> None:
    """Raise ConfigError unless a folder can be written at `path`, which the setting `key` names; nothing is made."""
    place = Path(path)
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    check(writable, key, path, f"a folder that can be made or written into; {place} is no such folder")


def require_file(path: str, key: str) -> None:
    """The same of a file."""
    check(not Path(path).is_dir(), key, path, "a file; this is a folder")
    require_folder(str(Path(path).parent), key)
