"""neurofreeze logs: what a run has written last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from neurofreeze.commands.settings import compose
from neurofreeze.config.commands import LogsConfig
from neurofreeze.console import console
from neurofreeze.errors import RunError
from neurofreeze.launcher.folders import run_folders
from neurofreeze.launcher.script import LOGS
from neurofreeze.launcher.state import exit_code

_POLL = 1.0  # seconds


def main(overrides: Sequence[str]) -> int:
    """Print the end of the run's newest log; of a sweep, of every run's."""
    return compose("logs", overrides, _logs, "logs", needs_folder=False)


def _logs(config: LogsConfig, _: Path, __: str) -> int:
    folders = run_folders(Path(config.run))
    if config.follow and len(folders) > 1:
        raise RunError(
            f"follow=true shows one log, but {config.run} has {len(folders)} runs; expected one of their folders"
        )
    for folder in folders:
        log = newest(folder)
        if log is None and len(folders) == 1:
            raise RunError(
                f"{folder} has no log yet; expected one of a Slurm job or of nf.launch, as other runs print to their "
                f"terminal. `neurofreeze status {folder}` shows how far this one is"
            )
        if log is None:
            _print(f"== {folder} has no log yet")
            continue
        _print(f"== {log}")
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        _print("\n".join(lines[-config.lines :]))
        if config.follow:
            _follow(folder, log)
    return 0


def newest(folder: Path) -> Path | None:
    """The log that was written to last, None if there is none."""
    return max(folder.glob(f"{LOGS}/*"), key=lambda path: path.stat().st_mtime, default=None)


def _follow(folder: Path, log: Path) -> None:
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(0, 2)
        while True:
            ended = exit_code(folder) is not None  # asked first, so that nothing written before the end is missed
            _print(file.read().rstrip("\n"))
            if ended:
                return
            time.sleep(_POLL)


def _print(text: str) -> None:
    if text:
        console.print(text, soft_wrap=True)
