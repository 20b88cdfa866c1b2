"""Engines: where a rank's shards of masters, gradients and moments are. `recognise` picks the one in use."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from neurofreeze.engines.base import Engine, Shard
from neurofreeze.engines.plain import PlainEngine
from neurofreeze.errors import FreezeError

__all__ = ["Engine", "PlainEngine", "Shard", "recognise"]


def recognise(model: Any, optimizer: Any) -> Engine:
    """The engine that runs this model and optimizer.

    Raises:
        FreezeError: if it is one in which freezing is not verified.
    """
    if not isinstance(model, nn.Module):
        raise FreezeError(f"expected a torch module to freeze, found {type(model).__name__}")
    for module in (type(m) for m in model.modules()):
        _refuse_sharded(module)
    if any(type(p).__name__ == "DTensor" or hasattr(p, "ds_id") for p in model.parameters()):
        raise FreezeError("the model's parameters are sharded (FSDP2 or ZeRO-3), which this version cannot freeze yet")
    while not isinstance(optimizer, torch.optim.Optimizer) or type(optimizer).__module__.startswith("accelerate."):
        if not hasattr(optimizer, "optimizer"):
            raise FreezeError(f"expected a torch optimizer, found {type(optimizer).__name__}")
        optimizer = optimizer.optimizer
    if type(optimizer).__module__.startswith(("deepspeed.", "bitsandbytes.")):
        raise FreezeError(f"{type(optimizer).__name__} is not among the optimizers in which freezing is verified yet")
    return PlainEngine(model, optimizer)


def _refuse_sharded(module: type) -> None:
    names = {base.__name__ for base in module.__mro__}
    for name in ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine", "DataParallel"):
        if name in names:
            raise FreezeError(f"freezing under {name} is not verified yet; use one process or DDP")
