"""Making the tracker that a run's settings name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neurofreeze.config.monitor import MonitorCommandConfig
from neurofreeze.config.schema import Config
from neurofreeze.tracking import tensorboard, wandb
from neurofreeze.tracking.base import Tracker
from neurofreeze.tracking.guarded import Guarded
from neurofreeze.tracking.redaction import redact

SWEEP = "sweep.json"  # in the folder above the runs of a sweep


def make(
    config: Config | MonitorCommandConfig, folder: Path, command: str, overrides: Sequence[str] = ()
) -> Tracker | None:
    """The tracker of the settings, started; None where metrics.jsonl is enough. Only rank 0 may call it.

    One that fails, now or later, warns once and is silent from then on.

    Args:
        config: settings of the run, which are shown without their secrets.
        folder: of the run.
        command: that runs now.
        overrides: as given on the command line.

    Raises:
        ConfigError: if a package that the tracker needs is not installed.
    """
    name = config.tracker.name
    if name == "jsonl":
        return None
    settings: dict[str, Any] = redact({**asdict(config), "overrides": list(overrides)})
    if name == "tensorboard":
        tensorboard.require_package()
        return Guarded(name, lambda: tensorboard.TensorBoard(folder, settings))
    group = folder.parent.name if (folder.parent / SWEEP).is_file() else None
    return Guarded(
        "W&B",
        lambda: wandb.WandB(
            config.tracker,
            folder,
            name=config.name if group is None else f"{config.name}-{folder.name}",
            group=group,
            command=command,
            settings=settings,
        ),
    )
