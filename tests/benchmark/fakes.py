"""Cells that train nothing, for worker processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fake:
    """Does what its place says, and then leaves a file."""

    place: str
    folder: Path

    def run(self) -> None:
        if self.place == "wrong":
            raise ValueError("no such thing")
        if self.place == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / f"{self.place}.{os.getpid()}").touch()
        if self.place == "endless":
            time.sleep(120)


def fakes(folder: Path, *places: str) -> Any:
    """As `work_off` takes them."""
    return [Fake(place, folder) for place in places]
