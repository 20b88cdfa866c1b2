"""DeepSpeed ZeRO 0 to 3: masters are slices of flat partitions, beside the model's own low-precision copies.

Two facts make freezing exact (measured on DeepSpeed 0.19): hooks of ours that run before DeepSpeed's own see the whole
gradient, before it is reduced and its norm taken; and when the base optimizer's step ends, the low-precision copy still
holds the values from before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from neurofreeze.distributed import rank
from neurofreeze.engines.base import Replica
from neurofreeze.engines.lookup import find
from neurofreeze.engines.plain import flat
from neurofreeze.errors import FreezeError
from neurofreeze.geometry import Block, flat_slice, whole

_SHARDED = Replica("zero", 0)


class ZeroShard:
    """A slice [start, start + numel) of a flattened parameter, stored at `offset` of a flat master."""

    def __init__(
        self,
        name: str,
        parameter: nn.Parameter,
        optimizers: tuple[torch.optim.Optimizer, ...],
        *,
        owner: Callable[[], torch.Tensor],
        offset: int,
        start: int,
        numel: int,
        low_precision: Callable[[], torch.Tensor],
        replica: Replica = _SHARDED,
    ) -> None:
        self.name = name
        self.shape = shape_of(parameter)
        self.parameter = parameter
        self.blocks: tuple[Block, ...] = flat_slice(self.shape, start, numel)
        self.replica = replica
        self._optimizers = optimizers
        self._owner = owner
        self._low_precision = low_precision
        self._offset = offset
        self._numel = sum(block.numel for block in self.blocks)

    @property
    def owner(self) -> torch.Tensor:
        """The flat master partition."""
        return self._owner()

    def master(self) -> torch.Tensor:
        """The slice of the flat master, 1-D."""
        return self._slice(self._owner().detach())

    def low_precision(self) -> torch.Tensor | None:
        """The model's own copy of the slice, 1-D; None where it is the master itself (fp32 without a separate copy)."""
        if self._numel == 0:
            return None
        found = self._low_precision().detach()[: self._numel]
        return None if found.data_ptr() == self.master().data_ptr() else found

    def moments(self) -> Iterator[torch.Tensor]:
        """Optimizer state of the flat master's size, this slice of each."""
        for optimizer in self._optimizers:
            for value in optimizer.state.get(self._owner(), {}).values():
                if isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() == self._owner().numel():
                    yield self._slice(value)

    def _slice(self, tensor: torch.Tensor) -> torch.Tensor:
        return flat(self.name, tensor)[self._offset : self._offset + self._numel]


class WholeGradient:
    """The whole gradient of a parameter, as DeepSpeed's own hook is about to take it away."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name = name
        self.shape = shape_of(parameter)
        self.blocks: tuple[Block, ...] = whole(self.shape)
        self.parameter = parameter

    def gradient(self) -> torch.Tensor | None:
        """The accumulated gradient, 1-D, or None."""
        gradient = self.parameter.grad
        return None if gradient is None else flat(f"{self.name}.grad", gradient.detach())


class DeepSpeedEngine:
    """A module under one of DeepSpeed's optimizers."""

    def __init__(self, module: nn.Module, zero: Any) -> None:
        self.module = module
        self.zero = zero
        self._locate = _LOCATORS.get(type(zero).__name__)
        if self._locate is None:
            raise FreezeError(
                f"freezing under DeepSpeed's {type(zero).__name__} is not verified; use ZeRO stage 0 to 3 without "
                "ZenFlow, SuperOffload, pipelines or 1-bit optimizers"
            )
        for flag in ("zenflow", "swap_optimizer", "torch_autocast_gradscaler", "is_moe_model"):
            if getattr(zero, flag, None):
                raise FreezeError(f"freezing under DeepSpeed with {flag} is not verified; switch it off to freeze")

    @property
    def name(self) -> str:
        """Deepspeed with the class that runs the step."""
        return f"deepspeed {type(self.zero).__name__}"

    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The base optimizer, and the second one that a partial offload has."""
        found = (self.zero.optimizer, getattr(self.zero, "backup_optimizer", None))
        return tuple(optimizer for optimizer in found if optimizer is not None)

    def shards(self, names: Collection[str]) -> list[ZeroShard]:
        """The slices of the named parameters in this rank's partitions."""
        assert self._locate is not None
        parameters = find(self.module, names)
        located = {shard.name: shard for shard in self._locate(self.zero, parameters, self.optimizers())}
        for name in names:
            if name not in located:
                raise FreezeError(
                    f"{name} is in the mask but in none of DeepSpeed's parameter groups; does it require a gradient?"
                )
        return [located[name] for name in names]

    def gradients(self, names: Collection[str]) -> list[WholeGradient]:
        """The whole gradients of the named parameters."""
        return [WholeGradient(name, parameter) for name, parameter in find(self.module, names).items()]

    def gradients_at_step(self, names: Collection[str]) -> tuple[WholeGradient, ...]:
        """None: DeepSpeed has taken them into its own buffers."""
        return ()


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """The whole parameter's shape, also while ZeRO-3 has it released to shape (0,)."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


Optimizers = tuple[torch.optim.Optimizer, ...]
Parameters = dict[str, nn.Parameter]


def _at(zero: Any, attribute: str, *places: int) -> torch.Tensor:
    # Looked up at each call: loading a checkpoint and offloading put other tensors there.
    found = getattr(zero, attribute)
    for place in places:
        found = found[place]
    return cast(torch.Tensor, found)


def _from(parameter: nn.Parameter, start: int) -> torch.Tensor:
    return parameter.data.view(-1)[start:]


def _partition(parameter: Any) -> torch.Tensor:
    return cast(torch.Tensor, parameter.ds_tensor.data.view(-1))


def _stage_1_and_2(zero: Any, parameters: Parameters, optimizers: Optimizers) -> Iterator[ZeroShard]:
    groups = zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, zero.bit16_groups_flat, strict=True)
    for number, (members, offsets, flat_group) in enumerate(groups):
        owner = partial(_at, zero, "single_partition_of_fp32_groups", number)
        partition = _partition_of(flat_group, zero.real_dp_process_group[number])
        yield from _overlaps(parameters, optimizers, owner, zip(members, offsets, strict=True), partition)


def _bf16(zero: Any, parameters: Parameters, optimizers: Optimizers) -> Iterator[ZeroShard]:
    for number, (members, flat_group) in enumerate(zip(zero.bf16_groups, zero.bf16_groups_flat, strict=True)):
        owner = partial(_at, zero, "fp32_groups_flat_partition", number)
        partition = _partition_of(flat_group, zero.real_dp_process_group[number])
        yield from _overlaps(parameters, optimizers, owner, _packed(members), partition)


def _partition_of(flat_group: torch.Tensor, process_group: Any) -> tuple[int, int]:
    """Start and size of the part of a flattened group that this rank owns."""
    size = flat_group.numel() // dist.get_world_size(process_group)
    return dist.get_rank(process_group) * size, size


def _packed(members: Iterable[nn.Parameter]) -> Iterator[tuple[nn.Parameter, int]]:
    """Parameters laid one after the other, each with its offset."""
    offset = 0
    for parameter in members:
        yield parameter, offset
        offset += parameter.numel()


def _overlaps(
    parameters: Parameters,
    optimizers: Optimizers,
    owner: Callable[[], torch.Tensor],
    placed: Iterable[tuple[nn.Parameter, int]],
    partition: tuple[int, int],
) -> Iterator[ZeroShard]:
    """The part of each placed parameter that lies in this rank's partition (start, size) of the flattened group."""
    names = {id(p): name for name, p in parameters.items()}
    low, size = partition
    for parameter, offset in placed:
        if id(parameter) in names:
            begin = max(offset, low)
            end = max(begin, min(offset + parameter.numel(), low + size))
            yield ZeroShard(
                names[id(parameter)],
                parameter,
                optimizers,
                owner=owner,
                offset=begin - low,
                start=begin - offset,
                numel=end - begin,
                low_precision=partial(_from, parameter, begin - offset),
            )


def _stage_3(zero: Any, parameters: Parameters, optimizers: Optimizers) -> Iterator[ZeroShard]:
    name: str
    parameter: Any
    for name, parameter in parameters.items():
        position = zero.grad_position.get(zero.get_param_id(parameter))
        if position is None:
            continue
        group, offset, numel = position
        start = dist.get_rank(parameter.ds_process_group) * numel
        yield ZeroShard(
            name,
            parameter,
            optimizers,
            owner=partial(_at, zero, "fp32_partitioned_groups_flat", group),
            offset=offset,
            start=start,
            numel=numel,
            low_precision=partial(_partition, parameter),
        )


def _unfused(zero: Any, parameters: Parameters, optimizers: Optimizers) -> Iterator[ZeroShard]:
    for group, members in enumerate(zero.fp16_groups):
        for place, parameter in enumerate(members):
            owner = partial(_at, zero, "fp32_groups", group, place)
            yield from _copies(parameters, optimizers, owner, [(parameter, 0)])


def _fused(zero: Any, parameters: Parameters, optimizers: Optimizers) -> Iterator[ZeroShard]:
    for group, members in enumerate(zero.fp16_groups):
        yield from _copies(parameters, optimizers, partial(_at, zero, "fp32_groups_flat", group), _packed(members))


def _copies(
    parameters: Parameters,
    optimizers: Optimizers,
    owner: Callable[[], torch.Tensor],
    placed: Iterable[tuple[nn.Parameter, int]],
) -> Iterator[ZeroShard]:
    """Whole parameters, each rank with a master of its own."""
    names = {id(p): name for name, p in parameters.items()}
    for parameter, offset in placed:
        if id(parameter) in names:
            yield ZeroShard(
                names[id(parameter)],
                parameter,
                optimizers,
                owner=owner,
                offset=offset,
                start=0,
                numel=parameter.numel(),
                low_precision=partial(_from, parameter, 0),
                replica=Replica("world", rank()),
            )


_LOCATORS: dict[str, Callable[[Any, Parameters, Optimizers], Iterator[ZeroShard]]] = {
    "DeepSpeedZeroOptimizer": _stage_1_and_2,
    "DeepSpeedZeroOptimizer_Stage3": _stage_3,
    "BF16_Optimizer": _bf16,
    "FP16_UnfusedOptimizer": _unfused,
    "FP16_Optimizer": _fused,
}
