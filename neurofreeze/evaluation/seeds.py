"""Arms compared over seeds, the unit of a comparison: one seed is one run of every arm, on the same start and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from neurofreeze.evaluation.statistics import CONFIDENCE, Mean

EXACT = 16  # seeds up to which all sign flips are counted; above, 2^16 random ones
RESAMPLES = 9999  # of the bootstrap


@dataclass(frozen=True)
class SeedTest:
    """How one arm differs from another over seeds.

    Attributes:
        difference: mean of first - second with its Student t interval.
        low, high: 95 % bootstrap interval of that mean over seeds (BCa, Efron 1987); NaN for a single seed.
        sign_p: exact two-sided sign test; seeds without a difference do not count.
        permutation_p: two-sided sign-flip test of the mean (Fisher 1935), exact for up to EXACT seeds.
    """

    difference: Mean
    low: float
    high: float
    sign_p: float
    permutation_p: float

    @classmethod
    def of(cls, first: Mapping[int, float], second: Mapping[int, float], rng: int = 0) -> SeedTest:
        """Compare two arms, each a number (a rate, a loss) by seed.

        Args:
            first: seed -> number.
            second: the same of the other arm, for the same seeds.
            rng: seed of the resampling.

        Raises:
            ValueError: if they do not have the same seeds, or none.
        """
        if first.keys() != second.keys() or not first:
            raise ValueError(
                f"arms have the seeds {sorted(first)} and {sorted(second)}; expected the same, at least one"
            )
        differences = np.array([first[seed] - second[seed] for seed in sorted(first)])
        low, high = _bootstrap(differences, rng)
        return cls(Mean.of(differences.tolist()), low, high, _sign_test(differences), _sign_flips(differences, rng))


def against(arms: Mapping[str, Mapping[int, float]], baseline: str, rng: int = 0) -> dict[str, tuple[SeedTest, float]]:
    """Every arm compared with `baseline`, and its permutation p-value after Holm's correction over the arms."""
    tests = {arm: SeedTest.of(values, arms[baseline], rng) for arm, values in arms.items() if arm != baseline}
    corrected = holm({arm: test.permutation_p for arm, test in tests.items()})
    return {arm: (test, corrected[arm]) for arm, test in tests.items()}


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm 1979): below 0.05, all of them hold together with 95 % confidence."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_value))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _sign_test(differences: npt.NDArray[np.float64]) -> float:
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    return float(stats.binomtest(above, above + below).pvalue) if above + below else 1.0


def _sign_flips(differences: npt.NDArray[np.float64], rng: int) -> float:
    if len(differences) == 1 or not differences.any():
        return 1.0
    # Rounded, or flips that tie in exact arithmetic would differ in the last bit: ties are common among rates.
    result = stats.permutation_test(
        (differences / np.abs(differences).max(),),
        lambda values, axis: values.mean(axis=axis).round(12),
        permutation_type="samples",
        n_resamples=2**EXACT,
        vectorized=True,
        rng=np.random.default_rng(rng),
    )
    return float(result.pvalue)


def _bootstrap(differences: npt.NDArray[np.float64], rng: int) -> tuple[float, float]:
    if len(differences) == 1:
        return float("nan"), float("nan")
    if np.ptp(differences) == 0:  # BCa's acceleration is 0 / 0
        return float(differences[0]), float(differences[0])
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(rng),
    ).confidence_interval
    return float(interval.low), float(interval.high)
