"""Thresholds with a stated rate of false alarms, from prompts that the reference was not made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from neurofreeze.errors import DataError
from neurofreeze.guard.monitor.detectors import Array, Detector

_STREAMS = 200


def conformal(held: Array, rate: float) -> float:
    """What a new benign prompt's score passes with probability at most `rate`: split conformal prediction.

    The ceil((n + 1)(1 - rate))-th smallest of the n held-out scores (Vovk, Gammerman, Shafer 2005; Angelopoulos and
    Bates 2023, section 1). The bound is over draws of held-out and new prompts together: given the held-out ones, the
    rate is Beta distributed around it.

    Args:
        held: scores of prompts that are exchangeable with new benign ones, float64 [n].
        rate: of false alarms, in (0, 1).

    Raises:
        DataError: if there are too few for that rate.
    """
    place = math.ceil((len(held) + 1) * (1 - rate) - 1e-9)
    if place > len(held):
        raise DataError(
            f"a false-alarm rate of {rate:g} needs at least {math.ceil(1 / rate - 1e-9) - 1} held-out prompts, the "
            f"reference has {len(held)}; calibrate on more prompts or allow more false alarms"
        )
    return float(np.sort(held)[place - 1])


def p_value(held: Array, score: float) -> float:
    """Share of held-out scores at least as high, the new one among them: (1 + count) / (n + 1)."""
    return (1 + int((held >= score).sum())) / (len(held) + 1)


def run_length(make: Callable[[int], Detector], held: Array, target: int, seed: int) -> float:
    """The threshold that a detector passes once in `target` prompts on average while nothing has changed.

    By bootstrap: streams of `target` prompts drawn from the held-out ones. The time to a false alarm is close to
    exponential, so that a stream stays below the threshold with probability 1/e: the 1/e quantile of the streams'
    largest statistics.

    Args:
        make: a detector for so many streams.
        held: standardised activations of held-out prompts, float64 [prompts, neurons].
        target: average run length, prompts.
        seed: of the bootstrap.

    Raises:
        DataError: if the statistic stays 0, which no threshold is a multiple of.
    """
    generator = np.random.default_rng(seed)
    detector = make(_STREAMS)
    inputs = detector.inputs(held)
    largest = np.zeros(_STREAMS)
    for _ in range(target):
        largest = np.maximum(largest, detector.update(inputs[generator.integers(len(held), size=_STREAMS)]))
    threshold = float(np.quantile(largest, math.exp(-1)))
    if threshold <= 0:
        raise DataError(
            f"a detector's statistic stays 0 over {target} of the held-out prompts, so that there is no threshold for "
            "it; lower detection.allowance or raise detection.run_length"
        )
    return threshold
