"""TensorBoard: event files in the run folder, one scalar a number; `tensorboard --logdir RUN-FOLDER` shows them."""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from neurofreeze.errors import ConfigError
from neurofreeze.tracking.base import STEP, named, series

FOLDER = "tensorboard"


def require_package() -> None:
    """Raise ConfigError unless torch's writer can work."""
    if find_spec("tensorboard") is None:
        raise ConfigError("tracker=tensorboard needs the package tensorboard; pip install 'neurofreeze[tensorboard]'")


class TensorBoard:
    """Writes numbers as scalars, at a row's global_step, or where it has none, at its place among such rows.

    Args:
        folder: of the run; events go into a folder in it.
        settings: of the run, shown as text.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / FOLDER))
        self._seen: Counter[str] = Counter()
        self._writer.add_text("settings", f"```\n{json.dumps(settings, indent=1)}\n```")

    def log(self, row: dict[str, Any]) -> None:
        """Write a row's numbers."""
        of = series(row)
        step = row.get(STEP, self._seen[of])
        self._seen[of] += 1
        for name, value in named(row).items():
            if isinstance(value, (int, float)) and not name.endswith(("/time", f"/{STEP}")):
                self._writer.add_scalar(name, value, step, walltime=row.get("time"))
        # Written at once: a job may be killed at any step, and rows come once a step.
        self._writer.flush()

    def artifact(self, name: str, path: Path, kind: str) -> None:
        """There is no place for files; they are in the run folder."""

    def finish(self, code: int) -> None:
        """Close the event file."""
        self._writer.close()
