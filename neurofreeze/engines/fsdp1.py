"""FSDP1 (`FullyShardedDataParallel`): parameters are slices of flat parameters, sharded without regard to rows.

Autograd accumulates the whole gradient of a flat parameter before FSDP reduces it, also where the optimizer steps the
original parameters, on which no gradient hook fires (measured on torch 2.13). So a hook on the flat parameter sees
every gradient, with and without `no_sync`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

from neurofreeze.distributed import rank
from neurofreeze.engines.base import Replica
from neurofreeze.engines.plain import flat, require_stepped
from neurofreeze.errors import FreezeError
from neurofreeze.geometry import Block, flat_slice, whole
from neurofreeze.neurons import canonical_name

_HYBRID = (ShardingStrategy.HYBRID_SHARD, ShardingStrategy._HYBRID_SHARD_ZERO2)


class FlatShard:
    """The slice of one parameter in this rank's shard of a flat parameter; no slice where it lies on other ranks.

    Args:
        name: canonical name of the original parameter.
        handle: FSDP's handle of the flat parameter.
        number: of the original parameter among those of the flat parameter.
        optimizer: steps the original parameter where FSDP was given use_orig_params, else the flat one.
        replica: the copy of the model that this shard is part of.
    """

    def __init__(self, name: str, handle: Any, number: int, optimizer: torch.optim.Optimizer, replica: Replica) -> None:
        self.name = name
        self.parameter: nn.Parameter = handle.flat_param
        self.shape = tuple(handle.flat_param._shapes[number])
        self.replica = replica
        self.owner: nn.Parameter = handle.flat_param._params[number] if handle._use_orig_params else handle.flat_param
        found = handle.flat_param._shard_param_infos[number]
        self._offset: int = found.offset_in_shard or 0
        self._numel: int = found.numel_in_shard or 0
        self.blocks: tuple[Block, ...] = flat_slice(self.shape, found.intra_param_start_idx or 0, self._numel)
        self._handle = handle
        self._optimizer = optimizer
        if self._numel:
            self.master()

    def master(self) -> torch.Tensor:
        """The slice of the sharded flat parameter, 1-D."""
        found = self._slice(self.name, self.parameter.detach())
        if self._is_original():
            original = self.owner.detach()
            if original.numel() != self._numel or original.data_ptr() != found.data_ptr():
                raise FreezeError(
                    f"{self.name} no longer shares the storage of FSDP's flat parameter; write to it in place, and "
                    "never assign its .data"
                )
        return found

    def low_precision(self) -> None:
        """There is none: under mixed precision the sharded parameter stays in full precision."""

    def gradient(self) -> torch.Tensor | None:
        """The reduced and sharded gradient, 1-D, or None."""
        gradient = self.owner.grad
        return None if gradient is None else self._part(f"{self.name}.grad", gradient.detach())

    def moments(self) -> Iterator[torch.Tensor]:
        """Optimizer state with one value per element of what the optimizer steps, this slice of each."""
        for key, value in self._optimizer.state.get(self.owner, {}).items():
            if isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() == self.owner.numel():
                yield self._part(f"{self.name}.{key}", value)

    def _is_original(self) -> bool:
        return self.owner is not self.parameter

    def _part(self, what: str, tensor: torch.Tensor) -> torch.Tensor:
        """Of a tensor laid out as the owner, what belongs to this parameter."""
        if not self._is_original():
            return self._slice(what, tensor)
        if tensor.numel() != self._numel:
            raise _not_sharded(what, tensor.numel(), self._numel)
        return flat(what, tensor)

    def _slice(self, what: str, tensor: torch.Tensor) -> torch.Tensor:
        expected = self._handle.flat_param._sharded_size.numel()
        if tensor.numel() != expected:
            raise _not_sharded(what, tensor.numel(), expected)
        return flat(what, tensor)[self._offset : self._offset + self._numel]


class FlatGradient:
    """The whole gradient of one parameter inside its flat parameter's, which FSDP is about to reduce."""

    def __init__(self, name: str, handle: Any, number: int) -> None:
        self.name = name
        self.parameter: nn.Parameter = handle.flat_param
        self.shape = tuple(handle.flat_param._shapes[number])
        self.blocks: tuple[Block, ...] = whole(self.shape)
        self._handle = handle
        self._offset = _offsets(handle.flat_param)[number]
        self._numel: int = handle.flat_param._numels[number]

    def gradient(self) -> torch.Tensor | None:
        """The gradient that this rank has accumulated, 1-D, or None."""
        gradient = self.parameter.grad
        if gradient is None:
            return None
        expected = self._handle.flat_param._unpadded_unsharded_size.numel()
        if gradient.numel() != expected:
            raise FreezeError(
                f"{self.name}: the gradient of its flat parameter has {gradient.numel()} elements when it has just "
                f"been accumulated, expected {expected}; this way of training cannot be frozen"
            )
        return flat(f"{self.name}.grad", gradient.detach())[self._offset : self._offset + self._numel]


class FSDP1Engine:
    """A model in FullyShardedDataParallel, and the torch optimizer that steps it."""

    name = "fsdp1"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(model, FullyShardedDataParallel):
            raise FreezeError(
                f"FullyShardedDataParallel is only inside {type(model).__name__}; wrap the whole model in it and pass "
                "what it returns"
            )
        for unit in FullyShardedDataParallel.fsdp_modules(model):
            _refuse(unit)
        self.model = model
        self.optimizer = optimizer

    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The one optimizer."""
        return (self.optimizer,)

    def shards(self, names: Collection[str]) -> list[FlatShard]:
        """The slices of the named parameters in this rank's shards."""
        found = [
            FlatShard(name, unit._handle, number, self.optimizer, _replica(unit))
            for name, (unit, number) in self._find(names).items()
        ]
        # An optimizer may be given only the parameters of which this rank holds something.
        require_stepped({shard.name: shard.owner for shard in found if shard.blocks}, self.optimizer)
        return found

    def gradients(self, names: Collection[str]) -> list[FlatGradient]:
        """The whole gradients of the named parameters: hooks on a flat parameter run before its gradient is reduced."""
        return [FlatGradient(name, unit._handle, number) for name, (unit, number) in self._find(names).items()]

    def gradients_at_step(self, names: Collection[str]) -> list[FlatShard]:
        """The reduced gradients, sharded as the parameters are."""
        return self.shards(names)

    def _find(self, names: Collection[str]) -> dict[str, tuple[Any, int]]:
        """Canonical name -> the unit that holds the parameter, and its number in the unit's flat parameter."""
        places = {
            canonical_name(f"{prefix}.{name}" if prefix else name): (unit, number)
            for prefix, unit in self.model.named_modules()
            if isinstance(unit, FullyShardedDataParallel) and unit._handle is not None
            for number, name in enumerate(unit._handle.flat_param._fqns)
        }
        for name in names:
            if name not in places:
                raise FreezeError(
                    f"{name} is in the mask but in no flat parameter of FSDP; freezing what is ignored, or tied to a "
                    "parameter of another name, is not verified"
                )
            _refuse_unusual(name, *places[name])
        return {name: places[name] for name in names}


def _refuse(unit: Any) -> None:
    if unit.cpu_offload.offload_params:
        raise FreezeError("freezing under FSDP1 with CPUOffload is not verified; use FSDP2 to offload")
    if unit._comm_hook is not None:
        raise FreezeError("freezing under FSDP1 with a communication hook is not verified; train without one")
    ranks = unit.process_group.size() * (unit._inter_node_pg.size() if unit.sharding_strategy in _HYBRID else 1)
    if ranks != dist.get_world_size():
        raise FreezeError(
            f"FSDP1 runs on {ranks} of {dist.get_world_size()} ranks; freezing is verified only where it runs on all"
        )


def _refuse_unusual(name: str, unit: Any, number: int) -> None:
    flat_param = unit._handle.flat_param
    if flat_param._param_extensions[number] is not None:
        raise FreezeError(f"{name}: freezing under FSDP1 with tensor parallelism is not verified; use FSDP2")
    if not flat_param._contiguities[number]:
        raise FreezeError(f"{name} was not contiguous when FSDP1 flattened it; call .contiguous() before wrapping")
    info = flat_param._param_infos[number]
    shared = {(id(other.prim_module), other.prim_param_name) for other in flat_param._shared_param_infos}
    if (id(info.module), info.param_name) in shared:
        raise FreezeError(f"{name} is shared by several modules; freezing that under FSDP1 is not verified")


def _replica(unit: Any) -> Replica:
    if unit.sharding_strategy == ShardingStrategy.NO_SHARD:
        return Replica("world", rank())
    if unit.sharding_strategy in _HYBRID:
        return Replica("fsdp1 hybrid", dist.get_rank(unit._inter_node_pg))
    return Replica("fsdp1", 0)


def _offsets(flat_param: Any) -> list[int]:
    """Where each parameter begins in the unsharded flat parameter; alignment padding is laid between them."""
    numels = flat_param._numels_with_padding
    starts = [end - numel for end, numel in zip(accumulate(numels), numels, strict=True)]
    return [start for start, padding in zip(starts, flat_param._is_padding_mask, strict=True) if not padding]


def _not_sharded(what: str, found: int, expected: int) -> FreezeError:
    return FreezeError(
        f"{what} has {found} elements, expected a shard of {expected}; check and save between steps, not inside a "
        "forward or summon_full_params, and step after a backward outside no_sync"
    )
