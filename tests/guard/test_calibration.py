"""Thresholds keep to their target; areas, rates and intervals agree with independent ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from neurofreeze.errors import GuardError
from neurofreeze.guard.calibration import Calibration, auc_interval, auc_of, threshold_for

VALUES = st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 3)), min_size=1, max_size=30)


@given(VALUES, VALUES, st.floats(0, 0.99))
def test_no_more_than_the_target_reaches_the_threshold(
    harmful: list[float], benign: list[float], target: float
) -> None:
    threshold = threshold_for(harmful, benign, target)
    reached = sum(value >= threshold for value in benign)
    assert reached <= target * len(benign) + 1e-9
    # One more would be too many, unless it is tied with others.
    below = max(value for value in benign if value < threshold)
    assert sum(value >= below for value in benign) > math.floor(target * len(benign) + 1e-9)


@given(VALUES, VALUES)
def test_area_and_rates(harmful: list[float], benign: list[float]) -> None:
    found = Calibration.of(harmful, benign, target=0.1)
    labels = [1] * len(harmful) + [0] * len(benign)
    assert found.auc == pytest.approx(roc_auc_score(labels, [*harmful, *benign]))
    assert 0 <= found.auc_low <= found.auc + 1e-9
    assert found.auc - 1e-9 <= found.auc_high <= 1
    for value in (*harmful, *benign, min(benign) - 1, max(harmful) + 1):
        expected = (np.mean([b >= value for b in benign]), np.mean([h >= value for h in harmful]))
        assert found.rates(value) == pytest.approx(expected), value
    assert Calibration.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_a_perfect_area_has_an_interval_too() -> None:
    low, high = auc_interval(1.0, 20, 20)
    assert (0.8 < low < 0.98, high) == (True, 1.0)
    assert auc_interval(0.0, 20, 20) == pytest.approx((0.0, 1 - low))
    assert auc_interval(0.75, 200, 200)[0] > auc_interval(0.75, 20, 20)[0]


def test_the_interval_covers_the_true_area_about_as_often_as_it_says() -> None:
    rng, true = np.random.default_rng(0), 0.8144  # Phi(d / sqrt 2) of two normals d = 1.265 apart
    covered = 0
    for _ in range(400):
        area = auc_of(rng.normal(1.265, 1, 25).tolist(), rng.normal(0, 1, 25).tolist())
        low, high = auc_interval(area, 25, 25)
        covered += low <= true <= high
    assert 0.91 < covered / 400 < 0.98


def test_a_threshold_may_be_kept() -> None:
    found = Calibration.of([0.5, 2.0], [0.1, 1.0, 0.2], threshold=1.0)
    assert (found.target, found.threshold, found.benign.count, found.harmful.count) == (None, 1.0, 1, 1)


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(GuardError, match="0 harmful and 1 benign"):
        Calibration.of([], [1.0], target=0.1)
    with pytest.raises(GuardError, match="either a target"):
        Calibration.of([1.0], [1.0])
    with pytest.raises(GuardError, match="rate is 1"):
        Calibration.of([1.0], [1.0], target=1.0)
    found = Calibration.of([1.0], [0.0], target=0.1).as_json()
    for broken in ({**found, "roc": 3}, {**found, "more": 1}, {**found, "threshold": math.nan}, None):
        with pytest.raises(GuardError, match="malformed"):
            Calibration.from_json(broken)
