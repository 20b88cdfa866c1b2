"""Runs a module whose training stands still in the middle of a step, until a file appears: signals then hurry nobody.

python tests/training/held.py log STEP MODULE WORDS ...     after the losses of STEP were logged
python tests/training/held.py save STEP MODULE WORDS ...    while the checkpoint of STEP is saved, before its marker
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path
from typing import Any

GO = "go"  # in the run folder


def hold_log(step: int) -> None:
    from neurofreeze.stages.folder import RunFolder

    original = RunFolder.log

    def log(self: RunFolder, row: dict[str, Any]) -> None:
        original(self, row)
        if row["stage"] == "train" and row.get("global_step") == step:
            _wait_for(self.path / GO)

    RunFolder.log = log  # type: ignore[method-assign]


def hold_save(step: int) -> None:
    from neurofreeze.training import checkpointing

    original = checkpointing.write_atomically

    def write_atomically(path: Path, content: bytes) -> None:
        if path.parts[-2:] == (f"checkpoint-{step}", checkpointing.MARKER):
            _wait_for(path.parents[3] / GO)
        original(path, content)

    checkpointing.write_atomically = write_atomically


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)


if __name__ == "__main__":
    what, step, module, *words = sys.argv[1:]
    {"log": hold_log, "save": hold_save}[what](int(step))
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
