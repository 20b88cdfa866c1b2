"""Calibration, training and evaluation prompts must not overlap, or a result says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from neurofreeze.data.examples import Example
from neurofreeze.errors import DataError


def require_disjoint(splits: Mapping[str, Sequence[Example]]) -> None:
    """Raise DataError if a prompt occurs in two of the splits, without regard to case, punctuation and spacing.

    Args:
        splits: role ("data.train", "data.harmful", ...) -> its examples.
    """
    seen: dict[str, tuple[str, Example]] = {}
    for role, examples in splits.items():
        for example in examples:
            other, _ = seen.setdefault(example.key, (role, example))
            if other != role:
                raise DataError(
                    f"the prompt {example.prompt[:80]!r} is in both {other} and {role}; calibration, training and "
                    "evaluation must be disjoint: remove it from one of them"
                )
