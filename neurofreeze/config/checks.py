"""The one check of a setting's range, with its message."""

from __future__ import annotations

from typing import Any

from neurofreeze.errors import ConfigError


def check(condition: bool, key: str, found: Any, expected: str) -> None:
    """Raise ConfigError naming the setting, what was found and what was expected, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key} is {found!r}; expected {expected}")
