"""FSDP2 (`fully_shard`), alone, replicated (HSDP) or under tensor parallelism: parameters are DTensors.

A DTensor's local part is one rectangle of the parameter, whatever the placements; the optimizer steps it in place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from neurofreeze.engines.base import Replica
from neurofreeze.engines.lookup import find
from neurofreeze.engines.plain import PlainShard, flat, require_stepped
from neurofreeze.errors import FreezeError
from neurofreeze.geometry import Block, rectangle


class DTensorShard:
    """The local part of a DTensor parameter, which is its own master."""

    def __init__(self, name: str, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        self.name = name
        self.shape = tuple(parameter.shape)
        self.parameter = parameter
        self.optimizer = optimizer
        tensor = _dtensor(name, parameter)
        local_shape, offset = compute_local_shape_and_global_offset(self.shape, tensor.device_mesh, tensor.placements)
        if tuple(tensor._local_tensor.shape) != tuple(local_shape):
            raise FreezeError(
                f"{name}: this rank holds {tuple(tensor._local_tensor.shape)} of {self.shape}, but its placements "
                f"{tensor.placements} say {tuple(local_shape)}; this way of sharding cannot be frozen"
            )
        self.blocks: tuple[Block, ...] = rectangle(self.shape, local_shape, offset)
        self.replica = _replica(tensor)

    @property
    def owner(self) -> torch.Tensor:
        """The parameter."""
        return self.parameter

    def master(self) -> torch.Tensor:
        """The local part's values, 1-D."""
        return self._local(self.name, self.parameter)

    def low_precision(self) -> None:
        """There is none: under mixed precision the sharded parameter stays in full precision."""

    def gradient(self) -> torch.Tensor | None:
        """The reduced and sharded gradient, 1-D, or None."""
        gradient = self.parameter.grad
        return None if gradient is None else self._local(f"{self.name}.grad", gradient)

    def moments(self) -> Iterator[torch.Tensor]:
        """Optimizer state that is sharded as the parameter is, 1-D each."""
        for key, value in self.optimizer.state.get(self.parameter, {}).items():
            if isinstance(value, DTensor) and value.shape == self.parameter.shape:
                yield self._local(f"{self.name}.{key}", value)

    @staticmethod
    def _local(what: str, tensor: torch.Tensor) -> torch.Tensor:
        return flat(what, _dtensor(what, tensor)._local_tensor.detach())


class FSDP2Engine:
    """A model whose parameters are DTensors, and the torch optimizer that steps them."""

    name = "fsdp2"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The one optimizer."""
        return (self.optimizer,)

    def shards(self, names: Collection[str]) -> list[DTensorShard | PlainShard]:
        """The local parts of the named parameters; those kept out of sharding are whole."""
        parameters = find(self.model, names)
        require_stepped(parameters, self.optimizer)
        return [
            (DTensorShard if isinstance(parameter, DTensor) else PlainShard)(name, parameter, self.optimizer)
            for name, parameter in parameters.items()
        ]

    def gradients(self, names: Collection[str]) -> list[DTensorShard | PlainShard]:
        """The named parameters: hooks on a sharded parameter run after its gradient is reduced and sharded."""
        return self.shards(names)

    def gradients_at_step(self, names: Collection[str]) -> list[DTensorShard | PlainShard]:
        """Gradients stay in `.grad`."""
        return self.shards(names)


def _dtensor(what: str, tensor: torch.Tensor) -> DTensor:
    if not isinstance(tensor, DTensor):
        raise FreezeError(
            f"{what} is no longer sharded; check and save between steps, not inside a forward or summon_full_params"
        )
    return tensor


def _replica(tensor: DTensor) -> Replica:
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        raise FreezeError("this rank is not part of the device mesh of the model it trains")
    sizes = tensor.device_mesh.shape
    group, index = "", 0
    for dim, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            group += f"{dim}/"
            index = index * sizes[dim] + coordinate[dim]
        elif placement.is_partial():
            raise FreezeError("a parameter holds partial sums, which cannot be frozen")
    return Replica(group, index)
