"""What ranks must agree on, and what one does for all: an error or a difference on one of them stops all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist

from neurofreeze.errors import FreezeError, OtherRankError

T = TypeVar("T")

_PATIENCE = timedelta(days=7)  # with which ranks wait for what rank 0 does for all
_alone = False  # whether the others wait


def gather(value: T) -> list[T]:
    """`value` from every rank, in rank order. Collective: every rank must call it."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # filled by now


def rank() -> int:
    """The rank of this process, 0 when there is only one; before the ranks are connected, what their launcher says."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of ranks, 1 when there is only this process; also while it does the work of all."""
    return 1 if _alone or not (dist.is_available() and dist.is_initialized()) else dist.get_world_size()


def first_rank(work: Callable[[], T]) -> T:
    """The result of `work`, which rank 0 does as if it were alone while the others wait. Collective.

    The result must be small: it is sent to all ranks.

    Raises:
        OtherRankError: on the waiting ranks, if `work` raises on rank 0.
    """
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if rank() == 0:
        try:
            outcome[0] = _by_itself(work)
        except Exception as caught:
            error, outcome[1] = caught, f"{type(caught).__name__}: {caught}"
    dist.broadcast_object_list(outcome, src=0, group=_patient(dist.group.WORLD))
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise OtherRankError(f"rank 0 failed: {outcome[1]}")
    result: T = outcome[0]
    return result


def every_rank(work: Callable[[], T]) -> list[T]:
    """What `work` comes to on every rank, in rank order; each does it as if it were alone. Collective.

    Ranks wait for the slowest one, however long it takes. Results are sent to all ranks, so they must be small.

    Raises:
        OtherRankError: on the ranks on which `work` succeeds, if it raises on another.
    """
    if world_size() == 1:
        return [work()]
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    try:
        outcome[0] = _by_itself(work)
    except Exception as caught:
        error, outcome[1] = caught, f"{type(caught).__name__}: {caught}"
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome, group=_patient(dist.group.WORLD))
    if error is not None:
        raise error
    for other, (_, message) in enumerate(outcomes):
        if message is not None:
            raise OtherRankError(f"rank {other} failed: {message}")
    return [result for result, _ in outcomes]


def _by_itself(work: Callable[[], T]) -> T:
    global _alone
    _alone = True
    try:
        return work()
    finally:
        _alone = False


@cache
def _patient(_: Any) -> Any:
    # Of its own, because every collective of a process group has the same timeout; and not NCCL, under which waiting
    # ranks keep their GPUs busy.
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


@contextmanager
def all_or_none(what: str) -> Iterator[None]:
    """Run the body on every rank; if it fails anywhere, raise FreezeError everywhere.

    The body must not use collectives after a point where one rank alone may fail.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    messages = gather(None if error is None else str(error))
    if error is not None:
        raise error
    for other, message in enumerate(messages):
        if message is not None:
            raise FreezeError(f"{what} failed on rank {other}: {message}")


def require_equal(what: str, value: object) -> None:
    """Raise FreezeError on every rank unless all ranks hold the same `value`."""
    values = gather(value)
    if any(other != values[0] for other in values):
        listed = ", ".join(f"rank {index}: {other}" for index, other in enumerate(values))
        raise FreezeError(f"{what} differs between ranks ({listed}); all ranks must be given the same")
