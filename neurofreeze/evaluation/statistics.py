"""Intervals and paired tests over prompts. They describe one run: run-to-run noise needs several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """A count out of a total with its 95 % Wilson score interval (Wilson 1927)."""

    count: int
    total: int
    low: float
    high: float

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> Rate:
        """The rate of True in `outcomes`, which must not be empty."""
        count, total = sum(outcomes), len(outcomes)
        interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
        return cls(count, total, float(interval.low), float(interval.high))

    @property
    def value(self) -> float:
        """Count / total."""
        return self.count / self.total

    def __str__(self) -> str:
        return f"{self.count}/{self.total} ({self.low:.0%}-{self.high:.0%})"


@dataclass(frozen=True)
class Mean:
    """A mean over prompts with its 95 % Student t interval."""

    value: float
    total: int
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of `values`, which must not be empty; a single value has no interval (NaN bounds)."""
        array = np.asarray(values, dtype=np.float64)
        half = float("nan")
        if len(array) > 1:
            half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * stats.sem(array))
        mean = float(array.mean())
        return cls(mean, len(array), mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class PairedTest:
    """Two arms on the same prompts: how many only one of them refused, and the exact two-sided sign test on those."""

    only_first: int
    only_second: int
    p_value: float

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
        """McNemar's exact test (binomial, p = 1/2) on the discordant pairs; p is 1 when there are none.

        Raises:
            ValueError: if the arms were not measured on the same number of prompts.
        """
        pairs = list(zip(first, second, strict=True))
        only_first = sum(a and not b for a, b in pairs)
        only_second = sum(b and not a for a, b in pairs)
        discordant = only_first + only_second
        p_value = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
        return cls(only_first, only_second, p_value)
