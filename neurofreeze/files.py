"""Files that are either whole or absent, also after the machine went down, and reading those that are JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from neurofreeze.errors import NeuroFreezeError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` so that no reader and no crash ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_json_file(path: Path, written_by: str, error: type[NeuroFreezeError]) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        written_by: what writes the folder it is in, for the message.
        error: raised if the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as caught:
        raise error(f"{path} cannot be read ({caught.strerror}); expected a folder written by {written_by}") from caught
    except (ValueError, RecursionError) as caught:
        raise error(f"{path} is not JSON: {caught}") from caught


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make all that a folder holds reach the disk, from the leaves up."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
