"""From `key=value` arguments to a checked configuration and a run folder, through Hydra."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neurofreeze.config.commands import SCHEMAS
from neurofreeze.config.composed import checked, without_hydra
from neurofreeze.config.explaining import explain
from neurofreeze.config.location import conf_folder
from neurofreeze.config.schema import Config
from neurofreeze.console import quiet
from neurofreeze.errors import ConfigError
from neurofreeze.launcher import plugin
from neurofreeze.launcher.job import COMMANDS


def compose(
    command: str,
    overrides: Sequence[str],
    task: Callable[[Any, Path, str], int],
    config_name: str = "config",
    *,
    needs_folder: bool = True,
    sweeps: bool = False,
) -> int:
    """Compose the settings and call `task(settings, run folder, settings as YAML)`; returns its exit code.

    Hydra creates the run folder; a command that needs none gets the current one. If the command `sweeps`, `--multirun`
    hands the settings of all jobs to launcher.plugin instead.

    Raises:
        ConfigError: if a value is out of range.
        HydraException, OmegaConfBaseException: if a key is unknown or a value of the wrong type.
        RunError: if jobs of a sweep failed.
    """
    quiet()
    if not needs_folder:
        overrides = ["hydra.run.dir=.", *overrides]
    if any(override in ("--multirun", "-m") or override.startswith("hydra.mode=") for override in overrides):
        if not sweeps:
            raise ConfigError(f"{command} runs once; --multirun is for {', '.join(COMMANDS)}")
        overrides = [f"hydra.launcher.command={command}", *overrides]
    register()
    code = 0
    failure: Exception | None = None

    def wrapped(config: DictConfig) -> None:
        nonlocal code, failure
        try:
            folder = Path(HydraConfig.get().runtime.output_dir)
            code = task(checked(config), folder, OmegaConf.to_yaml(config, resolve=True))
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


def compose_once(overrides: Sequence[str]) -> tuple[Config, Path, str]:
    """The settings of one run, its folder, and the settings as YAML; nothing is run or created.

    Raises:
        ConfigError: if a value is unknown, of the wrong type or out of range.
    """
    register()
    try:
        with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
            composed = hydra.compose("config", list(overrides), return_hydra_config=True)
            folder = Path(composed.hydra.run.dir).absolute()
            config = without_hydra(composed)
            return checked(config), folder, OmegaConf.to_yaml(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, Config)) from error
    except ValueError as error:
        raise ConfigError(" ".join(str(error).split())) from error


def register() -> None:
    """Tell Hydra the schemas of all commands, and our launcher."""
    store = ConfigStore.instance()
    store.store("schema", Config)
    for name, schema in SCHEMAS.items():
        store.store(f"{name}_schema", schema)
    plugin.register()
