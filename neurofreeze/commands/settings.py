"""From `key=value` arguments to a checked configuration and a run folder, through Hydra."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from neurofreeze.config.location import conf_folder
from neurofreeze.config.schema import SCHEMAS, Config
from neurofreeze.console import quiet
from neurofreeze.errors import ConfigError


def compose(
    command: str,
    overrides: Sequence[str],
    task: Callable[[Any, Path, str], int],
    config_name: str = "config",
    *,
    needs_folder: bool = True,
) -> int:
    """Compose the settings and call `task(settings, run folder, settings as YAML)`; returns its exit code.

    Hydra creates the run folder; a command that needs none gets the current one.

    Raises:
        ConfigError: if a value is out of range.
        HydraException, OmegaConfBaseException: if a key is unknown or a value of the wrong type.
    """
    quiet()
    if not needs_folder:
        overrides = ["hydra.run.dir=.", *overrides]
    store = ConfigStore.instance()
    store.store("schema", Config)
    for name, schema in SCHEMAS.items():
        store.store(f"{name}_schema", schema)
    code = 0
    failure: Exception | None = None

    def wrapped(config: DictConfig) -> None:
        nonlocal code, failure
        try:
            settings = OmegaConf.to_object(config)
            _require_known(settings)
            folder = Path(HydraConfig.get().runtime.output_dir)
            code = task(settings, folder, OmegaConf.to_yaml(config, resolve=True))
        except Exception as caught:  # kept from Hydra, which would print it in its own way
            failure = caught

    arguments = sys.argv
    sys.argv = [f"neurofreeze {command}", *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)(wrapped)()
    except ValueError as error:  # from composing: what `task` raises is kept apart
        raise ConfigError(" ".join(str(error).split())) from error
    finally:
        sys.argv = arguments
    if failure is not None:
        raise failure
    return code


def _require_known(settings: Any, prefix: str = "") -> None:
    # `+key=value` adds a key past the schema; nothing would ever read it.
    known = {field.name for field in fields(settings)}
    for name, value in vars(settings).items():
        if name not in known:
            raise ConfigError(f"unknown setting {prefix + name!r}; expected one of {', '.join(sorted(known))}")
        if is_dataclass(value):
            _require_known(value, f"{prefix}{name}.")
