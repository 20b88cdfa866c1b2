"""Thresholds keep what they promise on fresh streams."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import stats

from neurofreeze.errors import DataError
from neurofreeze.guard.monitor.detectors import Cusum
from neurofreeze.guard.monitor.thresholds import conformal, p_value, run_length
from tests.guard.monitor.streams import reference


def test_the_finite_sample_correction() -> None:
    held = np.arange(1.0, 100.0)  # 99 scores
    assert conformal(held, 0.01) == 99  # ceil(100 * 0.99) = 99th, the largest
    assert conformal(held, 0.05) == 95
    assert conformal(held[::-1], 0.05) == 95
    with pytest.raises(DataError, match=r"needs at least 199 held-out prompts, the reference has 99"):
        conformal(held, 0.005)


def test_p_values() -> None:
    held = np.arange(1.0, 100.0)
    assert p_value(held, 1000.0) == 0.01
    assert p_value(held, 0.0) == 1.0
    assert p_value(held, 95.0) == 0.06


def test_the_rate_over_many_calibrations_is_the_nominal_one() -> None:
    """Given one calibration the rate is spread around it; over many it must be (n - place + 1) / (n + 1) = 5/100."""
    generator = np.random.default_rng(0)
    count = sum(bool(draw[99] > conformal(draw[:99], 0.05)) for draw in generator.exponential(size=(4000, 100)))
    interval = stats.binomtest(count, 4000).proportion_ci(0.99, method="exact")
    assert interval.low <= 0.05 <= interval.high


@pytest.mark.parametrize("joint", [True, False])
def test_false_alarms_of_a_sequential_detector_are_as_rare_as_asked(joint: bool) -> None:
    known = reference(2000)
    target = 200
    threshold = run_length(partial(_cusum, known, joint), known.held, target, seed=0)
    detector = _cusum(known, joint, 400)
    # Fresh draws of the held-out prompts' own distribution, in the detectors' own units.
    generator = np.random.default_rng(1)
    inputs = detector.inputs(known.held)
    lengths, running = np.zeros(400), np.ones(400, dtype=bool)
    for _ in range(1500):
        lengths += running
        running &= detector.update(inputs[generator.integers(len(inputs), size=400)]) <= threshold
    assert lengths.mean() == pytest.approx(target, rel=0.2)


def _cusum(known, joint, streams):  # type: ignore[no-untyped-def]
    return Cusum(known, 0.5, joint=joint, streams=streams)
