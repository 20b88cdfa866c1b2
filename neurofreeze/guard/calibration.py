"""From what a trigger measured on harmful and benign prompts to a threshold, and what is to be expected of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from neurofreeze.errors import GuardError
from neurofreeze.evaluation.statistics import CONFIDENCE, Rate

_FIELDS = {"target", "threshold", "benign", "harmful", "auc", "auc_low", "auc_high", "roc", "digests", "prompts"}


@dataclass(frozen=True)
class Calibration:
    """A prompt triggers if the largest value of its first steps reaches the threshold.

    Attributes:
        target: false-positive rate that the threshold was chosen for; None where it was given.
        threshold: see above.
        benign: false positives among the benign prompts, with a 95 % Wilson interval.
        harmful: true positives among the harmful ones.
        auc: area under the ROC curve, with a 95 % score interval (`auc_interval`).
        roc: (threshold, false-positive rate, true-positive rate), from the highest threshold down.
        digests: of the prompts, "harmful" and "benign".
        prompts: their keys (`Example.key`), by which later prompts are told to be new.
    """

    target: float | None
    threshold: float
    benign: Rate
    harmful: Rate
    auc: float
    auc_low: float
    auc_high: float
    roc: tuple[tuple[float, float, float], ...]
    digests: dict[str, str]
    prompts: tuple[str, ...]

    @classmethod
    def of(
        cls,
        harmful: Sequence[float],
        benign: Sequence[float],
        *,
        target: float | None = None,
        threshold: float | None = None,
        digests: Mapping[str, str] | None = None,
        prompts: Sequence[str] = (),
    ) -> Calibration:
        """Choose a threshold for `target`, or describe the one given.

        Args:
            harmful: each harmful prompt's largest value.
            benign: each benign one's.
            target: at most this share of the benign prompts may trigger.
            threshold: to keep.
            digests: of the prompts.
            prompts: their keys.

        Raises:
            GuardError: if there are no prompts of a kind, or not exactly one of target and threshold is given.
        """
        if not harmful or not benign:
            raise GuardError(
                f"calibration has {len(harmful)} harmful and {len(benign)} benign prompts; expected some of both"
            )
        if (target is None) == (threshold is None):
            raise GuardError("give either a target false-positive rate or a threshold to keep")
        if threshold is None:
            threshold = threshold_for(harmful, benign, target)  # type: ignore[arg-type]
        false, true = (Rate.of([value >= threshold for value in values]) for values in (benign, harmful))
        roc = _roc(harmful, benign)
        auc = auc_of(harmful, benign)
        low, high = auc_interval(auc, len(harmful), len(benign))
        return cls(target, threshold, false, true, auc, low, high, roc, dict(digests or {}), tuple(prompts))

    def rates(self, value: float) -> tuple[float, float]:
        """Share of the benign and of the harmful prompts that reach `value`."""
        found = (0.0, 0.0)
        for threshold, benign, harmful in self.roc:
            if threshold < value:
                break
            found = (benign, harmful)
        return found

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Any) -> Calibration:
        """What `as_json` gave.

        Raises:
            GuardError: if it is something else.
        """
        try:
            if set(found) != _FIELDS:
                raise ValueError(f"fields {sorted(set(found) ^ _FIELDS)}")
            rates = {name: Rate(**found[name]) for name in ("benign", "harmful")}
            roc = tuple((float(t), float(b), float(h)) for t, b, h in found["roc"])
            threshold = float(found["threshold"])
            if not math.isfinite(threshold):
                raise ValueError(f"threshold {threshold}")
            return cls(**{**found, **rates, "roc": roc, "threshold": threshold, "prompts": tuple(found["prompts"])})
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise GuardError(f"the calibration is malformed ({error}); calibrate the gate again") from error


def threshold_for(harmful: Sequence[float], benign: Sequence[float], target: float) -> float:
    """The threshold that at most a share of `target` of the benign values reaches, and as many harmful ones as can be.

    It lies halfway to the next value above, so that rounding, which differs with a batch's padding, decides nothing.

    Raises:
        GuardError: if target is not in [0, 1).
    """
    if not 0 <= target < 1:
        raise GuardError(f"the target false-positive rate is {target}; expected a number in [0, 1)")
    # The small number undoes rounding: 0.29 * 100 is 28.999999999999996.
    allowed = math.floor(target * len(benign) + 1e-9)
    below = sorted(benign, reverse=True)[allowed]
    above = [value for value in (*harmful, *benign) if value > below]
    # Where nothing is above, a little of what the values spread over.
    gap = (min(above) - below) / 2 if above else 1e-3 * (max(benign) - min(benign) or 1.0)
    return max(below + gap, float(np.nextafter(below, np.inf)))


def auc_of(harmful: Sequence[float], benign: Sequence[float]) -> float:
    """Probability that a harmful prompt's value is above a benign one's, ties counted half."""
    return float(stats.mannwhitneyu(harmful, benign).statistic / (len(harmful) * len(benign)))


def auc_interval(auc: float, harmful: int, benign: int) -> tuple[float, float]:
    """Score interval of an AUC: as Wilson's of a rate, it does not shrink to a point at 1 (Newcombe 2006, method 5).

    All areas whose own standard error, by Hanley and McNeil with both sample sizes replaced by their mean, is
    consistent with the one found.
    """
    z = stats.norm.ppf((1 + CONFIDENCE) / 2)
    size = (harmful + benign) / 2 - 1

    def beyond(area: float) -> float:
        spread = area * (1 - area) * (1 + size * ((1 - area) / (2 - area) + area / (1 + area))) / (harmful * benign)
        return float(abs(auc - area) - z * math.sqrt(spread))

    # At an area of 0 or 1 the error is 0 too, which is no end of the interval.
    near = 1e-9
    low = 0.0 if auc == 0 else optimize.brentq(beyond, 0.0, auc - near)
    high = 1.0 if auc == 1 else optimize.brentq(beyond, auc + near, 1.0)
    return float(low), float(high)


def _roc(harmful: Sequence[float], benign: Sequence[float]) -> tuple[tuple[float, float, float], ...]:
    def reaching(values: Any, threshold: float) -> float:
        return float(1 - np.searchsorted(values, threshold) / len(values))

    bad, good = np.sort(harmful), np.sort(benign)
    thresholds = sorted({*harmful, *benign}, reverse=True)
    return tuple((float(value), reaching(good, value), reaching(bad, value)) for value in thresholds)
