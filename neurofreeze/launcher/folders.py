"""Which runs a folder holds: one, or those of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

from neurofreeze.errors import RunError

SWEEP = "sweep.json"
_OF_RUN = ("resolved.yaml", "job.json", "working.json", "metrics.jsonl", "stages")


def run_folders(folder: Path) -> list[Path]:
    """The run folders of a sweep's folder, or of a run: itself.

    Raises:
        RunError: if it is neither, or sweep.json is damaged.
    """
    if (folder / SWEEP).is_file():
        try:
            content = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
            return [folder / job["folder"] for job in content["jobs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder / SWEEP} is damaged ({error!r}); give the folder of a run in it") from error
    if not any((folder / name).exists() for name in _OF_RUN):
        raise RunError(f"{folder} holds neither a run nor a sweep; expected a folder such as runs/NAME or sweeps/NAME")
    return [folder]
