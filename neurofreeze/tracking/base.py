"""Tracker: what mirrors the rows of metrics.jsonl, and how a row's numbers are called there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

STEP = "global_step"  # optimizer steps; every arm counts from 1


class Tracker(Protocol):
    """Mirrors a run's rows elsewhere. What it is given is already in the run folder."""

    def log(self, row: dict[str, Any]) -> None:
        """Take a row of metrics.jsonl."""
        ...

    def artifact(self, name: str, path: Path, kind: str) -> None:
        """Take a small file or folder of the run, such as a mask."""
        ...

    def finish(self, code: int) -> None:
        """The command ended with this exit code; nothing follows."""
        ...


def series(row: dict[str, Any]) -> str:
    """What a row belongs to: its stage, and its arm where it has one, as in "train/safety".

    Steps grow within a series only: each arm trains from step 1.
    """
    return "/".join(str(row[key]) for key in ("stage", "arm") if key in row)


def named(row: dict[str, Any]) -> dict[str, Any]:
    """A row's values by full name: "train/safety/loss", and nested ones as "monitor/safety/updates/layers.0.mlp"."""
    return _flat(series(row), {key: value for key, value in row.items() if key not in ("stage", "arm")})


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}/{key}" if prefix else key
        found |= _flat(name, value) if isinstance(value, dict) else {name: value}
    return found
