"""Statistics over streams of activations, in float64 and constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch

from neurofreeze.strategies.observing import Positions, Tokens, pieces


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
        if self.pooling is None:
            self._gather(tokens.flat(self.positions))
        else:
            self.add(tokens.pooled(self.pooling, self.positions))

    def add(self, samples: torch.Tensor) -> None:
        """Add samples, float [samples, channels]."""
        self._gather(part.to(torch.float64, copy=True) for (part,) in pieces(samples))

    def merge(self, other: RunningMoments) -> None:
        """Add all that another has seen."""
        if other.count:
            self._combine(other.count, torch.as_tensor(other.mean), torch.as_tensor(other.squares))

    def variance(self) -> torch.Tensor:
        """Sample variance, float64 [channels]; zero where fewer than two samples were seen."""
        return torch.as_tensor(self.squares) / max(self.count - 1, 1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was gathered: "count", and if that is not 0 "mean" and "squares"."""
        found = {"mean": torch.as_tensor(self.mean).cpu(), "squares": torch.as_tensor(self.squares).cpu()}
        return {"count": torch.tensor(self.count), **(found if self.count else {})}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the place of what was gathered here."""
        self.count = int(state["count"])
        self.mean, self.squares = state.get("mean", 0.0), state.get("squares", 0.0)

    def _gather(self, parts: Iterable[torch.Tensor]) -> None:
        # Deviations from the first sample, which is at most sqrt(count) standard deviations from the mean: as exact as
        # torch.var_mean, which takes several times as long on a CPU.
        count, first = 0, torch.empty(0)
        sums: list[torch.Tensor] = []
        squares: list[torch.Tensor] = []
        for part in parts:
            if len(part):
                first = first if count else part[0].clone()
                count += len(part)
                sums.append(_sum(part.sub_(first)))
                squares.append(_sum(part.square_()))
        if count:
            shift = torch.stack(sums).sum(0) / count
            around = torch.stack(squares).sum(0) - count * shift**2
            self._combine(count, first + shift, around.clamp_(min=0))

    def _combine(self, count: int, mean: torch.Tensor, squares: torch.Tensor) -> None:
        delta = mean - _like(self.mean, mean)
        total = self.count + count
        self.squares = _like(self.squares, mean) + squares + delta**2 * (self.count * count / total)
        self.mean = _like(self.mean, mean) + delta * (count / total)
        self.count = total


class SumOfSquares:
    """Sum of squares per channel over tokens: the square of the norm that Wanda weighs inputs by."""

    def __init__(self, positions: Positions = "all") -> None:
        self.positions: Positions = positions
        self.total: torch.Tensor | float = 0.0

    def update(self, tokens: Tokens) -> None:
        """Add a batch's tokens."""
        found = tokens.once(("squares", self.positions), lambda: self._squares(tokens))
        self.total = _like(self.total, found) + found

    def merge(self, other: SumOfSquares) -> None:
        """Add all that another has seen."""
        self.total = self.total + other.total

    def _squares(self, tokens: Tokens) -> torch.Tensor:
        return torch.stack([_sum(part.square_()) for part in tokens.flat(self.positions)]).sum(0)

    def norm(self) -> torch.Tensor:
        """Float64 [channels]."""
        return torch.as_tensor(self.total).sqrt()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was gathered: "total"."""
        return {"total": torch.as_tensor(self.total, dtype=torch.float64).cpu()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the place of what was gathered here."""
        self.total = state["total"]


def _sum(samples: torch.Tensor) -> torch.Tensor:
    """Float64 [channels] from [samples, channels]; a product is faster than a sum along the first dimension."""
    return samples.new_ones(len(samples)) @ samples


def _like(gathered: torch.Tensor | float, other: torch.Tensor) -> torch.Tensor | float:
    # What another run of this selection kept comes back on the CPU.
    return gathered.to(other.device) if isinstance(gathered, torch.Tensor) else gathered
