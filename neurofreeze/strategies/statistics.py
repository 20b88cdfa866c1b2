"""Statistics over streams of activations, in float64 and constant memory."""

from __future__ import annotations

from typing import Literal

import torch

from neurofreeze.strategies.observing import Positions, Tokens


class RunningMoments:
    """Count, mean and sum of squared deviations per channel.

    Welford's recurrence in the form that merges whole batches (Chan, Golub, LeVeque 1979).

    Args:
        positions: which tokens count.
        pooling: None for one sample a token; "mean" or "max" over its tokens for one sample a prompt.
    """

    def __init__(self, positions: Positions = "all", pooling: Literal["mean", "max"] | None = None) -> None:
        self.positions: Positions = positions
        self.pooling = pooling
        self.count = 0
        self.mean: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0  # sum of squared deviations from the mean

    def update(self, tokens: Tokens) -> None:
        """Add a batch's samples."""
        pooling, positions = self.pooling, self.positions
        self.add(tokens.flat(positions) if pooling is None else tokens.pooled(pooling, positions))

    def add(self, samples: torch.Tensor) -> None:
        """Add samples, float [samples, channels]."""
        if len(samples):
            squares, mean = torch.var_mean(samples.double(), dim=0, correction=0)
            self._combine(len(samples), mean.cpu(), squares.cpu() * len(samples))

    def merge(self, other: RunningMoments) -> None:
        """Add all that another has seen."""
        if other.count:
            self._combine(other.count, torch.as_tensor(other.mean), torch.as_tensor(other.squares))

    def variance(self) -> torch.Tensor:
        """Sample variance, float64 [channels]; zero where fewer than two samples were seen."""
        return torch.as_tensor(self.squares) / max(self.count - 1, 1)

    def _combine(self, count: int, mean: torch.Tensor, squares: torch.Tensor) -> None:
        delta = mean - self.mean
        total = self.count + count
        self.squares = self.squares + squares + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total


class SumOfSquares:
    """Sum of squares per channel over tokens: the square of the norm that Wanda weighs inputs by."""

    def __init__(self, positions: Positions = "all") -> None:
        self.positions: Positions = positions
        self.total: torch.Tensor | float = 0.0

    def update(self, tokens: Tokens) -> None:
        """Add a batch's tokens."""
        self.total = self.total + tokens.flat(self.positions).double().square().sum(0).cpu()

    def merge(self, other: SumOfSquares) -> None:
        """Add all that another has seen."""
        self.total = self.total + other.total

    def norm(self) -> torch.Tensor:
        """Float64 [channels]."""
        return torch.as_tensor(self.total).sqrt()
