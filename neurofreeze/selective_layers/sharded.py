"""Reading and writing parameters that FSDP2 or ZeRO-3 keep in shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from neurofreeze.errors import FreezeError
from neurofreeze.selective_layers.lines import Lines


def partitioned(parameter: Any) -> bool:
    """Whether ZeRO-3 has the parameter in shards now."""
    return getattr(getattr(parameter, "ds_status", None), "name", "AVAILABLE") != "AVAILABLE"


def at_hand(parameter: Any) -> bool:
    """Whether this rank has the whole parameter, with values."""
    return not (isinstance(parameter, DTensor) or parameter.is_meta or partitioned(parameter))


def require_whole(weight: torch.Tensor) -> None:
    """Within a forward pass only tensor parallelism leaves a weight in shards.

    Raises:
        FreezeError: if it is.
    """
    if isinstance(weight, DTensor):
        raise FreezeError("selective layers do not run under tensor parallelism; use nf.freeze instead")


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor. Collective for a DTensor."""
    if not isinstance(tensor, DTensor):
        return tensor
    # Offloaded shards are in CPU memory, where their mesh may have no collectives.
    sharded: Any = tensor.to(tensor.device_mesh.device_type)
    return sharded.full_tensor().to(tensor.device)


def like(model: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """`whole`, sharded and of the precision as `model` is. Every rank has all of it."""
    whole = whole.to(model.dtype)
    if not isinstance(model, DTensor):
        return whole
    return distribute_tensor(whole, model.device_mesh, model.placements, src_data_rank=None).to(whole.device)


@torch.no_grad()
def combined(lines: Lines, weight: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
    """A copy of the parameter with the trained lines in it, sharded as it is. Collective for DTensors."""
    if weight.is_meta:
        return weight
    return like(weight, lines.put(gathered(weight), gathered(trained)))


@torch.no_grad()
def write(lines: Lines, weight: torch.Tensor, trained: torch.Tensor) -> None:
    """Write the trained lines into the parameter itself. Collective for DTensors."""
    if isinstance(weight, DTensor):
        local = combined(lines, weight, trained)
        assert isinstance(local, DTensor)
        weight.to_local().copy_(local.to_local())
    elif not weight.is_meta:
        lines.put_(weight, gathered(trained))


@contextmanager
def assembled(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Within the block parameters that ZeRO-3 partitions are whole."""
    in_shards = [p for p in parameters if hasattr(p, "ds_id")]
    if not in_shards:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(in_shards):
        yield
