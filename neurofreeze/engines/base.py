"""What an engine tells the freezer: where this rank's parameters, gradients and moments are. It decides nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import torch

from neurofreeze.geometry import Block


class Shard(Protocol):
    """What this rank holds of one parameter. Tensors are 1-D views, resolved at each call: engines swap storage."""

    name: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    parameter: torch.nn.Parameter

    def master(self) -> torch.Tensor:
        """The values the optimizer steps."""
        ...

    def gradient(self) -> torch.Tensor | None:
        """The accumulated gradient, None before the first backward."""
        ...

    def moments(self) -> Iterator[torch.Tensor]:
        """Optimizer state with one value per element of the master."""
        ...


class Engine(Protocol):
    """One way to run a training step: one process, DDP, FSDP, DeepSpeed."""

    name: str

    def shards(self, names: Collection[str]) -> Sequence[Shard]:
        """The shards that this rank holds of the named parameters.

        Raises:
            FreezeError: if a parameter is missing, in no optimizer, or not where the engine can reach it.
        """
        ...

    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The optimizers whose steps move the masters."""
        ...
