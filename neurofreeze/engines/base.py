"""What an engine tells the freezer: where this rank's parameters, gradients and moments are. It decides nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import nn

from neurofreeze.geometry import Block


class Replica(NamedTuple):
    """Which copy of a parameter a shard is part of: shards with the same replica together are one whole copy."""

    group: str
    copy_index: int


class Shard(Protocol):
    """What this rank holds of one parameter. Tensors are 1-D views, resolved at each call: engines swap storage."""

    name: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    replica: Replica
    parameter: nn.Parameter

    @property
    def owner(self) -> torch.Tensor:
        """The tensor in the optimizer's parameter groups that holds the master."""
        ...

    def master(self) -> torch.Tensor:
        """The values the optimizer steps."""
        ...

    def low_precision(self) -> torch.Tensor | None:
        """A copy that holds the values from before the step until after the optimizer's step; None if there is none."""
        ...

    def moments(self) -> Iterator[torch.Tensor]:
        """Optimizer state with one value per element of the master."""
        ...


class Gradient(Protocol):
    """Where the gradient of a parameter is when it has just been accumulated."""

    name: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    parameter: nn.Parameter

    def gradient(self) -> torch.Tensor | None:
        """The accumulated gradient, 1-D; None before the first backward."""
        ...


class Engine(Protocol):
    """One way to run a training step: one process, DDP, FSDP, DeepSpeed."""

    @property
    def name(self) -> str:
        """For tables and errors."""
        ...

    def shards(self, names: Collection[str]) -> Sequence[Shard]:
        """The shards that this rank holds of the named parameters.

        Raises:
            FreezeError: if a parameter is missing, in no optimizer, or not where the engine can reach it.
        """
        ...

    def gradients(self, names: Collection[str]) -> Sequence[Gradient]:
        """The gradients of the named parameters, as this rank accumulates them."""
        ...

    def gradients_at_step(self, names: Collection[str]) -> Sequence[Gradient]:
        """The gradients of the named parameters where the optimizer finds them; () where they are out of reach."""
        ...

    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The optimizers whose steps move the masters."""
        ...
