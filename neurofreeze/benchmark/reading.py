"""Reading trajectories off: what an arm refuses at the end of its training, and where it has learned a given amount."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple


class Point(NamedTuple):
    """A moment of a training: held-out loss, nats per answer token, and the share of harmful requests refused."""

    loss: float
    refused: float


def at_loss(trajectory: Sequence[Point], loss: float) -> float | None:
    """The share refused where the trajectory first comes down to `loss`; None if it never does.

    Linear between two measured points; nothing is extrapolated.

    Args:
        trajectory: from the start, in order of steps.
        loss: to read off at.
    """
    if trajectory[0].loss <= loss:
        return trajectory[0].refused
    for before, after in pairwise(trajectory):
        if after.loss <= loss:
            share = (before.loss - loss) / (before.loss - after.loss)
            return before.refused + share * (after.refused - before.refused)
    return None


def common_loss(trajectories: Mapping[str, Sequence[Point]], first: str, reach: float | None) -> float | None:
    """The loss at which arms of one seed and fine-tuning set are compared; None if there is none.

    Args:
        trajectories: of the arms, from the same start.
        first: the arm that `reach` refers to.
        reach: the share of what that arm learns by its end; None for the highest final loss of all arms that end below
            the start's loss, which all these have come down to.
    """
    start = next(iter(trajectories.values()))[0].loss
    if reach is not None:
        if first not in trajectories:
            return None
        learned = start - trajectories[first][-1].loss
        return start - reach * learned if learned > 0 else None
    return max((found[-1].loss for found in trajectories.values() if found[-1].loss < start), default=None)
