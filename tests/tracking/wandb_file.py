"""Reading a run's .wandb file back: what the library wrote, as it would be uploaded.

A header of 7 bytes, then blocks of 32 KiB with records: CRC-32 (u32), length (u16), type (u8), payload. A message
longer than what is left of a block is split over records of type first (2), middle (3) and last (4).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER, _BLOCK = 7, 32 * 1024
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Every Record message of a file."""
    data = path.read_bytes()
    assert data[:4] == b":W&B", "not a .wandb file"
    message, at = b"", _HEADER
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left  # padding
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            break
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record
            message = b""


def sessions(folder: Path) -> list[Path]:
    """The .wandb files in a run folder, oldest first."""
    return sorted(folder.glob("wandb/*run-*/*.wandb"), key=lambda path: (path.stat().st_mtime_ns, path))


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a session, without what the library adds."""
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
    return rows


def run_record(path: Path) -> Any:
    """The session's RunRecord: id, name, group, job type."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")


def config(path: Path) -> dict[str, Any]:
    """The session's config."""
    return {item.key: json.loads(item.value_json) for item in run_record(path).config.update}


def steps(path: Path) -> dict[str, str]:
    """Metric name or pattern -> its step metric."""
    found = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "metric" and record.metric.step_metric:
            found[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    return found


def artifacts(path: Path) -> dict[str, set[str]]:
    """Artifact name -> the files in it."""
    return {
        record.artifact.name: {entry.path for entry in record.artifact.manifest.contents}
        for record in records(path)
        if record.WhichOneof("record_type") == "artifact"
    }
