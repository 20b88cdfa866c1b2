"""Checking the options of strategies when they are made, before any model is loaded."""

from __future__ import annotations

from typing import Any, get_args

from neurofreeze.errors import ConfigError


def require(condition: bool, option: str, found: Any, expected: str) -> None:
    """Raise ConfigError, saying what was found and what was expected, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{option} is {found!r}; expected {expected}")


def require_switch(option: str, found: Any) -> None:
    """Raise ConfigError unless `found` is True or False: "no" on a command line is a text, which counts as true."""
    require(isinstance(found, bool), option, found, "true or false")


def require_one_of(option: str, found: Any, literal: Any) -> None:
    """Raise ConfigError unless `found` is one of the values of a `Literal` type."""
    require(found in get_args(literal), option, found, f"one of {', '.join(get_args(literal))}")
