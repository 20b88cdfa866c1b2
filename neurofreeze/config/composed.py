"""What Hydra has composed, made into checked settings."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from neurofreeze.errors import ConfigError


def checked(config: DictConfig) -> Any:
    """Settings as the dataclass of their schema.

    Raises:
        ConfigError: if a value is out of range, or a key was added that nothing reads.
        OmegaConfBaseException: if a value is of the wrong type.
    """
    settings = OmegaConf.to_object(config)
    _require_known(settings)
    return settings


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy without Hydra's own settings."""
    config = copy.deepcopy(config)
    with open_dict(config):
        del config["hydra"]
    return config


def _require_known(settings: Any, prefix: str = "") -> None:
    # `+key=value` adds a key past the schema; nothing would ever read it.
    known = {field.name for field in fields(settings)}
    for name, value in vars(settings).items():
        if name not in known:
            raise ConfigError(f"unknown setting {prefix + name!r}; expected one of {', '.join(sorted(known))}")
        if is_dataclass(value):
            _require_known(value, f"{prefix}{name}.")
