"""`neurofreeze` with a training that stands still after a step, until a file appears: a signal then comes in no hurry.

python -m tests.training.held STEP COMMAND key=value ...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from neurofreeze.cli import main
from neurofreeze.stages.folder import RunFolder

GO = "go"


def hold(step: int) -> None:
    """Stand still once `step` is logged, until the run folder holds the file `go`."""
    original = RunFolder.log

    def log(self: RunFolder, row: dict[str, Any]) -> None:
        original(self, row)
        if row["stage"] == "train" and row.get("global_step") == step:
            _wait_for(self.path / GO)

    RunFolder.log = log  # type: ignore[method-assign]


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)


if __name__ == "__main__":
    hold(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
