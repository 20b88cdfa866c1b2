"""How much a choice of neurons depends on the calibration prompts: the same strategy on random halves of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np

from neurofreeze.mask import NeuronMask

T = TypeVar("T")


@dataclass(frozen=True)
class Overlap:
    """Two choices of neurons: Jaccard index |A and B| / |A or B|, and its mean for random choices of the same sizes."""

    jaccard: float
    by_chance: float

    @classmethod
    def of(cls, first: NeuronMask, second: NeuronMask) -> Overlap:
        """The overlap of two masks of one model, against random masks with as many neurons at every site.

        The chance value puts the expected intersection, sum over sites of n_a n_b / n, into the index.
        """
        expected = sum(
            float(first.bits[site].sum()) * float(second.bits[site].sum()) / neurons
            for site, neurons in first.config.neurons.items()
        )
        size = first.count + second.count
        either = (first | second).count
        return cls((first & second).count / either if either else 1.0, expected / (size - expected) if size else 1.0)


def halves(items: Mapping[str, Sequence[T]], seed: int) -> tuple[dict[str, list[T]], dict[str, list[T]]]:
    """Each set split at random into two disjoint halves, in the original order."""
    rng = random.Random(seed)
    first: dict[str, list[T]] = {}
    second: dict[str, list[T]] = {}
    for name, values in items.items():
        chosen = set(rng.sample(range(len(values)), len(values) // 2))
        first[name] = [value for index, value in enumerate(values) if index in chosen]
        second[name] = [value for index, value in enumerate(values) if index not in chosen]
    return first, second


def stability(
    choose: Callable[[dict[str, list[T]]], NeuronMask], items: Mapping[str, Sequence[T]], splits: int, seed: int
) -> list[Overlap]:
    """The overlap of what `choose` finds on the two halves of the calibration sets, for several random splits."""
    return [Overlap.of(*(choose(half) for half in halves(items, seed + split))) for split in range(splits)]


def mean(overlaps: Sequence[Overlap]) -> Overlap:
    """The mean over splits."""
    return Overlap(*(float(np.mean([getattr(o, name) for o in overlaps])) for name in ("jaccard", "by_chance")))


def pairwise(masks: Mapping[str, NeuronMask]) -> dict[tuple[str, str], Overlap]:
    """The overlap of every pair of masks."""
    return {(a, b): Overlap.of(masks[a], masks[b]) for a, b in combinations(masks, 2)}
