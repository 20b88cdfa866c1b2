"""Clusters of rows that respond alike: k-means on their activation profiles, as many as the silhouette favours."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from neurofreeze.neurons import IndexArray

FEWEST = 3  # rows for which a silhouette is defined: two clusters, one of them with two rows
_STARTS = 10  # of k-means, the best of which counts

Profiles = npt.NDArray[np.float64]


def cluster(profiles: Profiles, most: int, *, standardize: bool = True, seed: int = 0) -> IndexArray:
    """The cluster of each row, int64 [rows], numbered from 0 by first appearance.

    K-means with every K from 2 to `most`; the K with the largest mean silhouette, the smallest of equal ones. Fewer
    than three rows are a cluster each, for nothing says that they belong together; rows with one profile are one.

    Args:
        profiles: float64 [rows, prompts].
        most: the largest K.
        standardize: subtract each row's mean over the prompts and divide by its standard deviation, so that rows are
            alike if they rise and fall together, however strongly.
        seed: of the starting points of k-means.
    """
    rows = len(profiles)
    if rows < FEWEST:
        return np.arange(rows)
    if standardize:
        profiles = profiles - profiles.mean(1, keepdims=True)
        spread = profiles.std(1, keepdims=True)
        profiles = np.divide(profiles, spread, out=np.zeros_like(profiles), where=spread > 0)
    best, labels = -np.inf, np.zeros(rows, dtype=np.int64)
    # Threads cost more than they help with some dozens of rows.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for count in range(2, min(most, rows - 1) + 1):
            found = KMeans(count, n_init=_STARTS, random_state=seed).fit_predict(profiles)
            if len(np.unique(found)) < count:
                break  # there are no more different rows
            silhouette = float(silhouette_score(profiles, found))
            if silhouette > best:
                best, labels = silhouette, found.astype(np.int64)
    return _numbered(labels)


def _numbered(labels: IndexArray) -> IndexArray:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty_like(first)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse]
