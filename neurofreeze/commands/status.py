"""neurofreeze status: how a run goes, or every run of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from neurofreeze.commands.settings import compose
from neurofreeze.config.commands import FolderConfig
from neurofreeze.console import console
from neurofreeze.launcher.folders import run_folders
from neurofreeze.launcher.state import Status, statuses


def main(overrides: Sequence[str]) -> int:
    """Print a table with a row for each run."""
    return compose("status", overrides, _status, "status", needs_folder=False)


def _status(config: FolderConfig, _: Path, __: str) -> int:
    console.print(table(statuses(run_folders(Path(config.run)))))
    return 0


def table(found: Sequence[Status]) -> Table:
    """One row a run; columns that no run has anything for are left out."""
    columns = {
        "run": [status.folder.name for status in found],
        "job": [status.job or "" for status in found],
        "state": [f"{status.state}: {status.reason}" if status.reason else status.state for status in found],
        "arm": [status.arm or "" for status in found],
        "step": [_step(status) for status in found],
        "loss": ["" if status.loss is None else f"{status.loss:.3f}" for status in found],
        "frozen": [{None: "", True: "intact", False: "CHANGED"}[status.frozen] for status in found],
        "refused": ["" if status.refusal_rate is None else f"{status.refusal_rate:.0%}" for status in found],
        "restarts": [str(status.restarts or "") for status in found],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    shown_table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in shown:
        justify: Literal["left", "right"] = "right" if name in ("step", "loss", "refused", "restarts") else "left"
        if name == "state":
            shown_table.add_column(name, overflow="fold", min_width=len("interrupted"))
        else:
            shown_table.add_column(name, justify=justify, no_wrap=name != "run", overflow="fold")
    for row in zip(*shown.values(), strict=True):
        shown_table.add_row(*row)
    return shown_table


def _step(status: Status) -> str:
    if status.step is None:
        return ""
    return str(status.step) if status.steps is None else f"{status.step}/{status.steps}"
