"""Where converted models are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$NEUROFREEZE_CACHE, else neurofreeze/ under $XDG_CACHE_HOME or ~/.cache."""
    if found := os.environ.get("NEUROFREEZE_CACHE"):
        return Path(found).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "neurofreeze"
