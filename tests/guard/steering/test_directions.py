"""Directions against numpy and scikit-learn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from neurofreeze.errors import DataError
from neurofreeze.guard.steering.directions import difference_in_means, principal_direction

RNG = np.random.default_rng(0)
AXIS = RNG.normal(size=12)
NEGATIVE = RNG.normal(size=(30, 12))
POSITIVE = NEGATIVE + AXIS * RNG.uniform(0.5, 1.5, (30, 1)) + 0.1 * RNG.normal(size=(30, 12))


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(POSITIVE), torch.tensor(NEGATIVE)


def test_difference_in_means_is_numpy_s() -> None:
    found = difference_in_means(*tensors()).numpy()
    np.testing.assert_allclose(found, POSITIVE.mean(0) - NEGATIVE.mean(0), rtol=1e-12)


def test_the_principal_direction_is_that_of_the_differences_in_both_orders() -> None:
    found = principal_direction(*tensors()).numpy()
    differences = POSITIVE - NEGATIVE
    component = PCA(1).fit(np.concatenate([differences, -differences])).components_[0]
    np.testing.assert_allclose(np.abs(found / np.linalg.norm(found)), np.abs(component), rtol=1e-8)
    # Its length takes the average negative side to the positive one, along the direction.
    np.testing.assert_allclose(np.linalg.norm(found), abs((differences @ component).mean()), rtol=1e-8)


@pytest.mark.parametrize("sign", [1, -1])
def test_most_pairs_positive_side_is_further_along_it(sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    positive, negative = tensors()
    u, s, vh = torch.linalg.svd(positive - negative, full_matrices=False)
    # A decomposition may come with either sign.
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: SimpleNamespace(U=sign * u, S=s, Vh=sign * vh))
    found = principal_direction(positive, negative)
    assert float(((positive - negative) @ found > 0).double().mean()) > 0.9


def test_pairs_that_do_not_differ_have_no_direction() -> None:
    with pytest.raises(DataError, match="expected two or more"):
        principal_direction(torch.ones(5, 3), torch.ones(5, 3))
    with pytest.raises(DataError, match="found 1 pairs"):
        principal_direction(torch.ones(1, 3), torch.zeros(1, 3))
