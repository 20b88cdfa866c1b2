"""Clusters against scikit-learn's k-means and a silhouette written out in numpy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.cluster import KMeans

from neurofreeze.methods.nest.clusters import cluster


def grouped(sizes: list[int], spread: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Profiles around one random centre a group, shuffled, and the group of each; 12 prompts."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return rng.normal(size=(len(sizes), 12))[groups] + spread * rng.normal(size=(len(groups), 12)), groups


def silhouette(x: np.ndarray, labels: np.ndarray) -> float:
    """Rousseeuw 1987: the mean of (b - a) / max(a, b), 0 for a row that is alone."""
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    found = []
    for row, label in enumerate(labels):
        own = (labels == label) & (np.arange(len(x)) != row)
        if not own.any():
            found.append(0.0)
            continue
        a = distances[row, own].mean()
        b = min(distances[row, labels == other].mean() for other in set(labels) - {label})
        found.append((b - a) / max(a, b))
    return float(np.mean(found))


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two labellings are one partition."""
    return bool((np.equal.outer(first, first) == np.equal.outer(second, second)).all())


@pytest.mark.parametrize("sizes", [[4, 5], [3, 6, 4], [2, 3, 4, 5, 6]])
def test_groups_that_are_apart_are_found(sizes: list[int]) -> None:
    profiles, groups = grouped(sizes)
    assert same(cluster(profiles, most=8), groups)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_number_has_the_largest_silhouette(standardize: bool, seed: int) -> None:
    profiles, _ = grouped([5, 4, 6], spread=1.5, seed=seed)
    profiles *= np.linspace(0.5, 3, 15)[:, None]
    x = profiles
    if standardize:
        x = (profiles - profiles.mean(1)[:, None]) / profiles.std(1)[:, None]
    candidates = [KMeans(k, n_init=10, random_state=seed).fit_predict(x) for k in range(2, 7)]
    expected = max(candidates, key=lambda labels: silhouette(x, labels))
    found = cluster(profiles, most=6, standardize=standardize, seed=seed)
    assert same(found, expected)
    assert len({len(set(labels)) for labels in candidates}) == 5, "every K was a candidate"


def test_of_equal_silhouettes_the_fewest_clusters_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurofreeze.methods.nest.clusters.silhouette_score", lambda *_: 0.5)
    assert len(set(cluster(grouped([4, 4, 4])[0], most=5))) == 2


def test_no_more_clusters_than_asked_for() -> None:
    profiles, _ = grouped([3, 3, 3, 3, 3])
    assert cluster(profiles, most=10).max() == 4
    assert cluster(profiles, most=3).max() <= 2


def test_numbers_go_by_first_appearance_without_gaps() -> None:
    profiles, _ = grouped([4, 5, 3], seed=3)
    labels = cluster(profiles, most=8)
    assert labels.dtype == np.int64
    assert list(dict.fromkeys(labels.tolist())) == [0, 1, 2]


def test_standardized_rows_are_alike_that_rise_and_fall_together() -> None:
    rising, falling = np.arange(8.0), np.arange(8.0)[::-1]
    profiles = np.stack([rising, falling, 100 * rising + 7, 100 * falling - 3, 2 * rising, 3 * falling])
    assert cluster(profiles, most=4).tolist() == [0, 1, 0, 1, 0, 1]
    assert cluster(profiles, most=2, standardize=False).tolist() != [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        ([[1, 2, 3]], [0]),
        ([[1, 2, 3], [1, 2, 3]], [0, 1]),
        ([[1, 2, 3], [3, 2, 1]], [0, 1]),
        ([[1, 2, 4], [1, 2, 4], [1, 2, 4]], [0, 0, 0]),
        ([[1, 2, 4], [1, 2, 4], [4, 2, 1], [1, 2, 4]], [0, 0, 1, 0]),
        ([[5, 5, 5], [6, 6, 6], [1, 2, 4], [1, 2, 4]], [0, 0, 1, 1]),  # what never changes has no shape
    ],
)
def test_few_equal_and_constant_rows(profiles: list[list[float]], expected: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cluster(np.array(profiles, dtype=np.float64), most=10).tolist() == expected


def test_profiles_are_not_changed() -> None:
    profiles, _ = grouped([4, 5])
    before = profiles.copy()
    cluster(profiles, most=4)
    np.testing.assert_array_equal(profiles, before)
