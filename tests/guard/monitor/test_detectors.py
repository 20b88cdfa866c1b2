"""Each statistic against a transcription of its formula, prompt by prompt, in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from neurofreeze.guard.monitor.detectors import Cusum, Psi
from neurofreeze.guard.monitor.reference import BINS, Reference
from tests.guard.monitor.streams import NEURONS, Stream, reference


@pytest.fixture(scope="module")
def known() -> Reference:
    return reference()


@pytest.fixture(scope="module")
def stream(known: Reference) -> np.ndarray:
    shift = np.where(np.arange(NEURONS) < 3, 0.8, 0.0)
    return known.standardized(Stream(5).draw(60, shift))


def test_distances_are_mahalanobis(known: Reference, stream: np.ndarray) -> None:
    covariance = np.linalg.inv(known.precision)
    expected = [row @ np.linalg.solve(covariance, row) for row in stream]
    np.testing.assert_allclose(known.distances(stream), expected, rtol=1e-9)


def test_the_covariance_is_shrunk_as_ledoit_and_wolf_do(known: Reference) -> None:
    observations = Stream(0).draw(800)
    own = observations[np.random.default_rng(0).permutation(800)][:400]
    z = (own - own.mean(0)) / own.std(0, ddof=1)
    sample = z.T @ z / len(z)
    mu = np.trace(sample) / NEURONS
    # Ledoit and Wolf 2004, section 3: delta^2 and beta^2, up to the same factor 1 / p.
    delta = np.square(sample - mu * np.eye(NEURONS)).sum()
    beta = sum(np.square(np.outer(row, row) - sample).sum() for row in z) / len(z) ** 2
    shrinkage = min(beta, delta) / delta
    expected = (1 - shrinkage) * sample + shrinkage * mu * np.eye(NEURONS)
    assert known.made_of["shrinkage"] == pytest.approx(shrinkage)
    np.testing.assert_allclose(np.linalg.inv(known.precision), expected, rtol=1e-6, atol=1e-9)


def test_cusum_of_neurons(known: Reference, stream: np.ndarray) -> None:
    detector = Cusum(known, 0.5, joint=False)
    high, low = [0.0] * NEURONS, [0.0] * NEURONS
    for row in stream:
        high = [max(0.0, c + z - 0.5) for c, z in zip(high, row, strict=True)]
        low = [max(0.0, c - z - 0.5) for c, z in zip(low, row, strict=True)]
        assert detector.update(detector.inputs(row[None]))[0] == pytest.approx(max(high + low))
    assert max(high) > 10


def test_cusum_of_the_joint_statistic(known: Reference, stream: np.ndarray) -> None:
    detector = Cusum(known, 0.25, joint=True)
    logs = [math.log(row @ known.precision @ row) for row in known.held]
    high = low = 0.0
    for row in stream:
        z = (math.log(row @ known.precision @ row) - np.mean(logs)) / np.std(logs)
        high, low = max(0.0, high + z - 0.25), max(0.0, low - z - 0.25)
        assert detector.update(detector.inputs(row[None]))[0] == pytest.approx(max(high, low))


def test_psi(known: Reference, stream: np.ndarray) -> None:
    detector, window = Psi(known, 40), 40
    own = known.mean + known.scale * stream
    shares = [[max(share, 1e-4) for share in neuron] for neuron in known.shares.tolist()]
    start = [list(neuron) for neuron in shares]
    for row, z in zip(own, stream, strict=True):
        found = []
        for j in range(NEURONS):
            bin_of = sum(row[j] > edge for edge in known.edges[j])
            shares[j] = [s * (1 - 1 / window) + (b == bin_of) / window for b, s in enumerate(shares[j])]
            terms = zip(shares[j], start[j], strict=True)
            found.append(sum((max(a, 1e-4) - e) * math.log(max(a, 1e-4) / e) for a, e in terms))
        assert detector.update(detector.inputs(z[None]))[0] == pytest.approx(max(found))
    assert max(found) > 0.25


def test_bins_are_the_references_deciles(known: Reference) -> None:
    assert known.shares.shape == (NEURONS, BINS)
    np.testing.assert_allclose(known.shares, 0.1, atol=0.003)


def test_streams_side_by_side_are_as_each_alone(known: Reference, stream: np.ndarray) -> None:
    for make in (
        lambda n: Cusum(known, 0.5, joint=True, streams=n),
        lambda n: Cusum(known, 0.5, joint=False, streams=n),
        lambda n: Psi(known, 30, streams=n),
    ):
        both, first, second = make(2), make(1), make(1)
        inputs = both.inputs(stream)
        for a, b in zip(inputs[:30], inputs[30:], strict=True):
            found = both.update(np.stack([a, b]))
            np.testing.assert_allclose(found, [first.update(a[None])[0], second.update(b[None])[0]])
