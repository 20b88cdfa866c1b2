"""What ranks must agree on: an error or a difference on one of them stops all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

from neurofreeze.errors import FreezeError

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """`value` from every rank, in rank order. Collective: every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # filled by now


def rank() -> int:
    """The rank of this process, 0 when there is only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


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
