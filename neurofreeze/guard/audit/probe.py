"""A linear probe for harm over all channels of a layer, and how far from its plane prompts are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from neurofreeze.errors import DataError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A plane between harmful and harmless prompts: w . h + b = 0.

    Attributes:
        weight: w, float64 [hidden], of length 1.
        bias: b.
    """

    weight: Array
    bias: float

    @classmethod
    def fit(cls, harmful: torch.Tensor, harmless: torch.Tensor, c: float = 1.0) -> LinearProbe:
        """Logistic regression of harmful (1) against harmless (0), with both kinds weighing the same.

        States are divided by one number, their root mean square, so that the penalty means the same at every layer;
        with more channels than prompts it is what chooses among the planes that separate them.

        Args:
            harmful: float [prompts, hidden].
            harmless: float [prompts, hidden].
            c: inverse strength of the L2 penalty, as in scikit-learn.

        Raises:
            DataError: if a kind has no prompt.
        """
        from sklearn.linear_model import LogisticRegression

        if not len(harmful) or not len(harmless):
            raise DataError(f"found {len(harmful)} harmful and {len(harmless)} harmless prompts; a probe needs both")
        states = torch.cat([harmful, harmless]).double().numpy()
        scale = float(np.sqrt(np.mean(states**2)))
        labels = [1] * len(harmful) + [0] * len(harmless)
        fitted = LogisticRegression(C=c, class_weight="balanced", max_iter=1000).fit(states / scale, labels)
        weight = fitted.coef_[0] / scale
        length = float(np.linalg.norm(weight))
        return cls(weight / length, float(fitted.intercept_[0]) / length)

    def margins(self, states: torch.Tensor) -> list[float]:
        """Each prompt's distance from the plane, w . h + b, above 0 on the harmful side; in the unit of the states."""
        found: list[float] = (states.double().numpy() @ self.weight + self.bias).tolist()
        return found
