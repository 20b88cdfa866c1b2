"""One process, or DDP: every rank holds every parameter whole, and the optimizer steps the parameter itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from neurofreeze.distributed import rank
from neurofreeze.engines.base import Replica
from neurofreeze.engines.lookup import find
from neurofreeze.errors import FreezeError
from neurofreeze.geometry import Block, whole


class PlainShard:
    """A whole parameter, which is its own master."""

    def __init__(self, name: str, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        self.name = name
        self.shape = tuple(parameter.shape)
        self.blocks: tuple[Block, ...] = whole(self.shape)
        self.replica = Replica("world", rank())
        self.parameter = parameter
        self.optimizer = optimizer

    @property
    def owner(self) -> torch.Tensor:
        """The parameter."""
        return self.parameter

    def master(self) -> torch.Tensor:
        """The parameter's values, 1-D."""
        return flat(self.name, self.parameter.detach())

    def low_precision(self) -> None:
        """There is none."""

    def gradient(self) -> torch.Tensor | None:
        """The parameter's gradient, 1-D, or None."""
        gradient = self.parameter.grad
        return None if gradient is None else flat(f"{self.name}.grad", gradient.detach())

    def moments(self) -> Iterator[torch.Tensor]:
        """Optimizer state of the parameter's own shape, 1-D each."""
        for key, value in self.optimizer.state.get(self.parameter, {}).items():
            if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape == self.parameter.shape:
                yield flat(f"{self.name}.{key}", value)


class PlainEngine:
    """A module and the torch optimizer that steps it."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.name = "ddp" if isinstance(model, DistributedDataParallel) else "plain"

    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The one optimizer."""
        return (self.optimizer,)

    def shards(self, names: Collection[str]) -> list[PlainShard]:
        """The named parameters, whole."""
        parameters = find(self.model, names)
        require_stepped(parameters, self.optimizer)
        return [PlainShard(name, parameter, self.optimizer) for name, parameter in parameters.items()]

    def gradients(self, names: Collection[str]) -> list[PlainShard]:
        """The named parameters, whose gradients are where they are."""
        return self.shards(names)

    def gradients_at_step(self, names: Collection[str]) -> list[PlainShard]:
        """Gradients stay in `.grad`."""
        return self.shards(names)


def require_stepped(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Raise FreezeError unless every parameter is in one of the optimizer's groups."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in stepped:
            raise FreezeError(
                f"{name} is in the mask but in no parameter group of {type(optimizer).__name__}; build the "
                "optimizer from the parameters of the model as prepared for training, then freeze"
            )


def flat(what: str, tensor: torch.Tensor) -> torch.Tensor:
    """A 1-D view.

    Raises:
        FreezeError: if the tensor is not contiguous.
    """
    if not tensor.is_contiguous():
        raise FreezeError(f"{what} is not contiguous (strides {tensor.stride()}); call .contiguous() before freezing")
    return tensor.view(-1)
