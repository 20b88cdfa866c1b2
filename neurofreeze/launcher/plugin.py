"""Hydra's way to a sweep: a launcher that composes and checks every job before `sweep` starts the first.

It is registered from here, so that no package `hydra_plugins` of ours is needed, and selected by conf/config.yaml.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from neurofreeze.config.composed import checked, without_hydra
from neurofreeze.errors import ConfigError

# Hydra imports plugins by name, from this package and its own only.
_PACKAGE = "hydra_plugins.neurofreeze"


@dataclass
class SweepLauncherConf:
    """hydra/launcher=neurofreeze."""

    _target_: str = f"{_PACKAGE}.SweepLauncher"
    command: str = MISSING  # of neurofreeze, set by it


class SweepLauncher(Launcher):
    """Starts the jobs of a sweep together.

    Args:
        command: of neurofreeze, which every job runs.
    """

    def __init__(self, command: str) -> None:
        self.command = command

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once, with the settings that all jobs share."""
        self.context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra for each batch of jobs; a sweeper that optimises gets each job's objective.

        Raises:
            ConfigError: if the settings of any job are wrong; then none is started.
            RunError: if jobs of a sweep that does not optimise failed.
        """
        from neurofreeze.launcher.job import Job
        from neurofreeze.launcher.sweep import run

        folder = Path(self.config.hydra.sweep.dir).absolute()
        jobs, configs = [], []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self._compose(number, overrides)
            settings = _checked(config, number, overrides)
            text = OmegaConf.to_yaml(config, resolve=True)
            jobs.append(Job(self.command, folder / str(number), settings, text, tuple(overrides)))
            configs.append(config)
        optimises = not self.config.hydra.sweeper._target_.endswith(".BasicSweeper")
        outcomes = run(jobs, folder, optimises=optimises)
        returns = []
        for config, overrides, outcome in zip(configs, job_overrides, outcomes, strict=True):
            status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
            returns.append(JobReturn(overrides=list(overrides), cfg=config, status=status, _return_value=outcome))
        return returns

    def _compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)  # for ${hydra:...}
        return without_hydra(config)


def register() -> None:
    """Make hydra/launcher=neurofreeze known to Hydra."""
    plugins = Plugins.instance()  # which has imported the package, if another distribution has a part of it
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    sys.modules[_PACKAGE] = sys.modules[__name__]
    SweepLauncher.__module__ = _PACKAGE
    plugins.register(SweepLauncher)
    ConfigStore.instance().store("neurofreeze", SweepLauncherConf, group="hydra/launcher", provider="neurofreeze")


def _checked(config: DictConfig, number: int, overrides: Sequence[str]) -> Any:
    try:
        return checked(config)
    except ConfigError as error:
        raise ConfigError(f"job {number} of the sweep ({' '.join(overrides)}): {error}; no job was started") from error
