"""One process, or DDP: every rank holds every parameter whole, and the optimizer steps the parameter itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from neurofreeze.errors import FreezeError
from neurofreeze.geometry import Block, whole
from neurofreeze.neurons import canonical_name


class PlainShard:
    """A whole parameter."""

    def __init__(self, name: str, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        self.name = name
        self.shape = tuple(parameter.shape)
        self.blocks: tuple[Block, ...] = (whole(self.shape),)
        self.parameter = parameter
        self.optimizer = optimizer

    def master(self) -> torch.Tensor:
        """The parameter's values, 1-D."""
        return _flat(self.name, self.parameter.detach())

    def gradient(self) -> torch.Tensor | None:
        """The parameter's gradient, 1-D, or None."""
        gradient = self.parameter.grad
        return None if gradient is None else _flat(f"{self.name}.grad", gradient.detach())

    def moments(self) -> Iterator[torch.Tensor]:
        """Optimizer state of the parameter's own shape, 1-D each."""
        for key, value in self.optimizer.state.get(self.parameter, {}).items():
            if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape == self.parameter.shape:
                yield _flat(f"{self.name}.{key}", value)


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
        parameters = {canonical_name(name): p for name, p in self.model.named_parameters()}
        stepped = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for name in names:
            if name not in parameters:
                raise FreezeError(
                    f"{name} is in the mask but not in the model, whose parameters are {_some(parameters)}"
                )
            if parameters[name].is_meta:
                raise FreezeError(f"{name} has no storage yet (device meta); freeze after the weights are loaded")
            if id(parameters[name]) not in stepped:
                raise FreezeError(
                    f"{name} is in the mask but in no parameter group of {type(self.optimizer).__name__}; build the "
                    "optimizer from the parameters of the model as prepared for training, then freeze"
                )
        return [PlainShard(name, parameters[name], self.optimizer) for name in names]


def _flat(what: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_contiguous():
        raise FreezeError(
            f"{what} is not contiguous (strides {tensor.stride()}); call .contiguous() on it before freezing"
        )
    return tensor.view(-1)


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")
