"""Ratios of step times between arms that took turns, robust against drift and outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000

Rounds = Sequence[Sequence[float]]  # seconds of each step, round by round


@dataclass(frozen=True)
class Ratio:
    """How many times as long the steps of an arm took as the baseline's, with a 95 % bootstrap interval over rounds."""

    value: float
    low: float
    high: float
    rounds: int
    steps: int

    @classmethod
    def of(cls, arm: Rounds, baseline: Rounds) -> Ratio:
        """The median over rounds of (median step of the arm) / (median step of the baseline in the same round)."""
        pairs = np.array([np.median(a) / np.median(b) for a, b in zip(arm, baseline, strict=True)])
        draws = np.random.default_rng(0).choice(pairs, (_RESAMPLES, len(pairs)))
        low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        return cls(float(np.median(pairs)), float(low), float(high), len(pairs), sum(len(steps) for steps in arm))

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def turns(arms: int, number: int) -> list[int]:
    """The order in which arms take their turns in a round: rotating, and every second round the last one backwards.

    Over such a pair of rounds all arms have the same mean place, so that a steady drift cancels.
    """
    start = number // 2 % arms
    order = [(start + place) % arms for place in range(arms)]
    return order[::-1] if number % 2 else order
