"""What the monitor is for: few false alarms, quick detection, and the attack that a single neuron cannot see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from neurofreeze.config.monitor import DetectionConfig
from neurofreeze.errors import DataError
from neurofreeze.guard.monitor import Monitor, Reference, Verdict
from tests.guard.monitor.streams import NEURONS, Stream, reference

CONFIG = DetectionConfig(false_alarm_rate=0.05, run_length=300, window=100)


@pytest.fixture(scope="module")
def known() -> Reference:
    return reference(4000)


@pytest.fixture(scope="module")
def _made(known: Reference) -> Monitor:
    return Monitor(known, CONFIG)


@pytest.fixture
def monitor(_made: Monitor) -> Monitor:
    _made.restart()
    _made.sinks.clear()
    return _made


def test_false_alarms_are_near_nominal_on_a_fresh_stream(monitor: Monitor) -> None:
    monitor.see(Stream(7).draw(1500))
    count = monitor.counts["mahalanobis"]
    interval = stats.binomtest(count, 1500).proportion_ci(0.95, method="exact")
    assert interval.low <= 0.05 <= interval.high
    assert (monitor.alarm_rate.count, monitor.alarm_rate.total) == (count, 1500)
    # 5 expected of each; a Poisson count is at most 12 with probability 0.998.
    assert all(monitor.counts[name] <= 12 for name in monitor.detectors)


def test_a_shift_is_found_soon_and_stays_found(monitor: Monitor) -> None:
    stream = Stream(8)
    assert not any({"cusum", "cusum_neurons", "psi"} & set(v.alarms) for v in monitor.see(stream.draw(30)))
    shift = np.where(np.arange(NEURONS) == 4, 2.0, 0.0)
    verdicts = monitor.see(stream.draw(200, shift))
    delays = {name: _first(verdicts, name) for name in ("cusum_neurons", "psi", "mahalanobis")}
    assert delays["cusum_neurons"] <= 12
    assert delays["psi"] <= 60
    assert verdicts[delays["cusum_neurons"] - 1].number == 30 + delays["cusum_neurons"]
    assert monitor.counts["cusum_neurons"] >= 10  # each alarm begins anew


def test_less_variance_is_a_shift_too(monitor: Monitor) -> None:
    """Prompts made to sit on the mean, as those of an attacker who knows the reference, are too close."""
    quiet = monitor.reference.mean + 0.2 * (Stream(9).draw(60) - monitor.reference.mean)
    verdicts = monitor.see(quiet)
    assert _first(verdicts, "cusum") <= 15
    assert _first(verdicts, "mahalanobis") == math.inf


def test_the_attack_below_the_gates_threshold_is_caught(monitor: Monitor) -> None:
    """The gate's neuron is held just below its threshold, the other safety neurons shift by two standard deviations."""
    gate = 4
    threshold = np.quantile(Stream(10).draw(2000)[:, gate], 0.99)
    signs = np.where(np.random.default_rng(3).random(NEURONS) < 0.5, -1.0, 1.0)
    attack = Stream(11).draw(100, 2 * signs)
    attack[:, gate] = np.minimum(attack[:, gate], threshold - 1e-3)
    assert not (attack[:, gate] > threshold).any()  # the single neuron sees nothing
    verdicts = monitor.see(attack)
    assert monitor.counts["mahalanobis"] >= 80
    assert _first(verdicts, "cusum") <= 5
    assert _first(verdicts, "cusum_neurons") <= 10


def test_what_is_not_finite_is_an_alarm_and_spoils_nothing(monitor: Monitor) -> None:
    bad = Stream(12).draw(3)
    bad[1, 5] = np.nan
    first, second, third = monitor.see(bad)
    assert second.alarms == ("not_finite",)
    assert second.p_value == 1 / (len(monitor.reference.held) + 1)
    assert second.farthest == monitor.reference.names[5]
    assert second.row["distance"] is None
    assert all(math.isfinite(value) for value in third.statistics.values())
    assert third.statistics != first.statistics


def test_memory_does_not_grow(monitor: Monitor) -> None:
    def size() -> int:
        arrays = [value for d in monitor.detectors.values() for value in vars(d).values()]
        return sum(value.nbytes for value in arrays if isinstance(value, np.ndarray))

    monitor.see(Stream(13).draw(2))
    before, fields = size(), set(vars(monitor))
    monitor.see(Stream(13).draw(500, 1.0))
    assert size() == before
    assert set(vars(monitor)) == fields
    assert set(monitor.counts) <= {"mahalanobis", "cusum", "cusum_neurons", "psi"}


def test_the_same_stream_gives_the_same_verdicts_in_any_batches(monitor: Monitor) -> None:
    stream = Stream(14).draw(40, 0.5)
    whole = monitor.see(stream)
    monitor.restart()
    assert [verdict for row in stream for verdict in monitor.see(row[None])] == whole


def test_sinks_get_each_verdict(monitor: Monitor) -> None:
    seen: list[Verdict] = []
    monitor.sinks.append(seen.append)
    assert monitor.see(Stream(15).draw(3)) == seen


def test_too_few_prompts_for_the_rate_are_refused() -> None:
    with pytest.raises(DataError, match="at least 99 held-out prompts, the reference has 50"):
        Monitor(reference(100), DetectionConfig(false_alarm_rate=0.01, run_length=10))


def test_an_allowance_that_no_prompt_exceeds_is_refused() -> None:
    with pytest.raises(DataError, match=r"stays 0 over 20 of .* lower detection\.allowance"):
        Monitor(reference(), DetectionConfig(allowance=20.0, run_length=20))


def _first(verdicts: list[Verdict], alarm: str) -> float:
    return next((place for place, found in enumerate(verdicts, 1) if alarm in found.alarms), math.inf)
