"""Rows of metrics.jsonl: reading them, and which still count after a job was killed and went on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows in the order they were written, none if there is no file; a last one without its end is left out."""
    if not path.is_file():  # nor a device: a run may be told to write to one
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def drop_unfinished(path: Path) -> None:
    """Cut off a last row without its end, which was being written when the disk was full or the machine went down."""
    if path.is_file():
        with path.open("rb+") as file:
            if not _ends_a_row(file):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def _ends_a_row(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    return file.read() in (b"", b"\n")


def next_attempt(rows: Sequence[Mapping[str, Any]], of: Mapping[str, Any]) -> int:
    """The number of the next attempt at what `of` names by stage and arm, from 1."""
    return 1 + max((row["attempt"] for row in rows if _belongs(row, of)), default=0)


def current(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that no later attempt at the same training has written anew: each step of each arm once.

    A job that is killed goes on from its last checkpoint, before the last rows it wrote. Those stay in the file, as
    they stay in a tracker, which takes nothing back.
    """
    kept: list[Mapping[str, Any]] = []
    attempts: dict[Any, int] = {}
    for row in rows:
        if "attempt" in row:
            of = {"stage": row["stage"], "arm": row.get("arm")}
            key = tuple(of.values())
            if row["attempt"] != attempts.get(key):
                attempts[key] = row["attempt"]
                kept = [old for old in kept if not _belongs(old, of) or old["global_step"] < row["global_step"]]
        kept.append(row)
    return kept


def _belongs(row: Mapping[str, Any], of: Mapping[str, Any]) -> bool:
    return "attempt" in row and all(row.get(key) == value for key, value in of.items())
