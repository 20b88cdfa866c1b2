"""Evaluation in parts: shared among ranks, and kept as they are done, so that what was interrupted goes on.

Each of n ranks has a model of its own and does every n-th part; what the parts are does not depend on how many ranks
there are, so neither does the outcome, on machines of one kind. Finished parts are kept in the stage's unfinished
folder, one JSON line each in a file a rank, and belong to whatever has the same settings and the same weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from neurofreeze.console import say
from neurofreeze.distributed import every_rank, first_rank, rank, world_size

P = TypeVar("P", bound="tuple[Any, ...]")
Values = list[Any]


def shared(
    stage: str,
    folder: Path,
    depends: Any,
    plan: Callable[[], Sequence[P]],
    work: Callable[[list[P]], Iterable[Values]],
) -> list[tuple[P, Values]]:
    """Every part with its values, in the order of the plan, the same on every rank. Collective.

    Args:
        stage: shown to the user.
        folder: in which finished parts are kept until all are; on a file system that all ranks see.
        depends: all that values depend on, JSON-serialisable. What was kept of anything else is not used.
        plan: called on rank 0 for all parts, JSON-serialisable tuples.
        work: called on every rank that has parts left, with those; yields the values of each, JSON-serialisable, in
            order. Nothing else may be kept of answers to harmful requests than what they hold.

    Raises:
        OtherRankError: on the ranks whose own work succeeds, if another's raises.
    """
    identity = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    def begin() -> tuple[list[P], dict[int, Values]]:
        parts = list(plan())
        kept = dict(_read(folder, identity))
        return parts, {number: kept[key] for number, key in enumerate(map(_key, parts)) if key in kept}

    parts, done = first_rank(begin)
    left = [number for number in range(len(parts)) if number not in done]
    mine = left[rank() :: world_size()]
    if done and rank() == 0:
        say(f"{stage}: goes on after {len(done)} of {len(parts)} batches that are done")

    def do() -> dict[int, Values]:
        return dict(_kept(folder, identity, parts, mine, work)) if mine else {}

    for found in every_rank(do):
        done |= found
    if rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return [(part, done[number]) for number, part in enumerate(parts)]


def _kept(
    folder: Path, identity: str, parts: Sequence[P], mine: list[int], work: Callable[[list[P]], Iterable[Values]]
) -> Iterator[tuple[int, Values]]:
    """The values of a rank's parts, each written as soon as it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{rank()}.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")  # after what a killed process may have begun
        for number, values in zip(mine, work([parts[number] for number in mine]), strict=True):
            file.write(json.dumps({"of": identity, "part": parts[number], "values": values}) + "\n")
            file.flush()
            yield number, values


def _read(folder: Path, identity: str) -> Iterator[tuple[str, Values]]:
    for path in sorted(folder.glob("rank-*.jsonl")):
        for row in map(_row, path.read_text(encoding="utf-8", errors="replace").splitlines()):
            if row is not None and row["of"] == identity:
                yield _key(row["part"]), row["values"]


def _row(line: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return None  # an empty line, or one that was cut off
    return found


def _key(part: Sequence[Any]) -> str:
    return json.dumps(list(part))
