"""A direction from paired activations: the difference in means, or the first principal component of the differences."""

from __future__ import annotations

import torch

from neurofreeze.errors import DataError


def difference_in_means(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Mean of `positive` minus mean of `negative` (Rimsky et al. 2023, arXiv 2312.06681), float64.

    Args:
        positive: float [samples, hidden].
        negative: float [samples, hidden], of as many samples or others.
    """
    return positive.double().mean(0) - negative.double().mean(0)


def principal_direction(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """The direction in which pairs differ most, as long as they differ along it on average, float64.

    With the differences D [pairs, hidden] in both orders, D and -D, whose mean is zero, the first principal component
    is the first right singular vector u of D. This is repeng's `pca_center`, and Zou et al.'s reading vector (2023,
    arXiv 2310.01405), whose pairs are in random order. Its sign is the one by which most pairs' positive side is
    further along it; its length is abs(mean(D u)), so that once the vector takes the negative side to the positive one.

    Args:
        positive: float [pairs, hidden].
        negative: float [pairs, hidden], row i of both from one pair.

    Raises:
        DataError: if there are no two pairs that differ.
    """
    differences = positive.double() - negative.double()
    if len(differences) < 2 or not differences.any():
        raise DataError(f"found {len(differences)} pairs, or none that differ; expected two or more for PCA")
    direction = torch.linalg.svd(differences, full_matrices=False).Vh[0]
    along = differences @ direction
    sign = 1.0 if (along > 0).sum() >= (along < 0).sum() else -1.0
    return sign * along.mean().abs() * direction
