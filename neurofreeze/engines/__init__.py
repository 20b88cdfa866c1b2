"""Engines: where a rank's shards of masters, gradients and moments are. `recognise` picks the one in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from neurofreeze.engines.base import Engine, Shard
from neurofreeze.engines.plain import PlainEngine
from neurofreeze.errors import FreezeError

__all__ = ["Engine", "PlainEngine", "Shard", "recognise", "require_verified_optimizers"]

_REFUSED = ("DataParallel", "PipelineEngine")
_UNVERIFIED_OPTIMIZERS = (
    # Moments in 8 bits cannot be seen to be zero.
    "bitsandbytes.",
    "torchao.",
    # Their state is not zero where the gradient always was: it holds eps, step sizes, or other copies of the weights.
    "torch.optim.adamax",
    "torch.optim.asgd",
    "torch.optim.rprop",
    "schedulefree.",
    # Steps within the backward pass.
    "lomo_optim.",
    # ZeroRedundancyOptimizer and others that wrap one: its moments are out of reach.
    "torch.distributed.optim.",
)


def recognise(model: Any, optimizer: Any) -> Engine:
    """The engine that runs this model and optimizer.

    Raises:
        FreezeError: if it is one in which freezing is not verified.
    """
    if not isinstance(model, nn.Module):
        raise FreezeError(f"expected a torch module to freeze, found {type(model).__name__}")
    return _recognise(model, optimizer)


def require_verified_optimizers(engine: Engine, shards: Sequence[Shard]) -> None:
    """Of these shards, which hold frozen elements, those that train must be stepped by optimizers that are verified.

    Raises:
        FreezeError: if one is not.
    """
    if not any(shard.parameter.requires_grad for shard in shards):
        return  # selective layers keep what is frozen from any optimizer
    # DeepSpeed's own optimizers are verified under its engine only.
    foreign = () if engine.name.startswith("deepspeed") else ("deepspeed.",)
    for optimizer in engine.optimizers():
        kinds = [base.__module__ for base in type(optimizer).__mro__]
        if any(kind.startswith((*_UNVERIFIED_OPTIMIZERS, *foreign)) for kind in kinds):
            raise FreezeError(
                f"{type(optimizer).__name__} is not among the optimizers in which masked gradients are verified; take "
                "torch's AdamW or nf.selective (training.enforcement=selective), which keeps frozen weights from it"
            )


def _recognise(model: Any, optimizer: Any) -> Engine:
    for module in model.modules():
        _refuse(type(module))
    if _is_deepspeed(model):
        from neurofreeze.engines.deepspeed import DeepSpeedEngine

        _refuse_deepcompile(model)
        return DeepSpeedEngine(model.module, model.optimizer) if _is_zero(model.optimizer) else _plain_deepspeed(model)
    base = _unwrap(optimizer)
    if _is_zero(base):
        from neurofreeze.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(model, base)
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise FreezeError(
            "the model's parameters belong to ZeRO-3, but the optimizer is not DeepSpeed's; pass the engine"
        )
    if any(_is_a(type(module), "FullyShardedDataParallel") for module in model.modules()):
        from neurofreeze.engines.fsdp1 import FSDP1Engine

        return FSDP1Engine(model, base)
    if any(isinstance(p, DTensor) for p in model.parameters()):
        from neurofreeze.engines.fsdp2 import FSDP2Engine

        return FSDP2Engine(model, base)
    return PlainEngine(model, base)


def _unwrap(optimizer: Any) -> Any:
    while not _is_zero(optimizer) and (
        not isinstance(optimizer, torch.optim.Optimizer) or type(optimizer).__module__.startswith("accelerate.")
    ):
        if not hasattr(optimizer, "optimizer"):
            raise FreezeError(f"expected a torch optimizer, found {type(optimizer).__name__}")
        optimizer = optimizer.optimizer
    return optimizer


def _plain_deepspeed(engine: Any) -> Engine:
    """DeepSpeed's stage 0 in fp32 steps the model's own parameters with the base optimizer."""
    found = PlainEngine(engine.module, _unwrap(engine.optimizer))
    found.name = "deepspeed stage 0 fp32"
    return found


def _is_deepspeed(model: Any) -> bool:
    return _is_a(type(model), "DeepSpeedEngine")


def _is_zero(optimizer: Any) -> bool:
    # Every optimizer that DeepSpeed wraps around a base optimizer, verified or not: DeepSpeedEngine refuses the rest.
    return type(optimizer).__module__.startswith("deepspeed.runtime.") and hasattr(optimizer, "optimizer")


def _refuse_deepcompile(engine: Any) -> None:
    enabled = getattr(engine, "is_deepcompile_enabled", None)
    if enabled is not None and enabled():
        raise FreezeError(
            "DeepCompile bypasses gradient hooks, so freezing under it cannot be guaranteed; switch it off"
        )


def _is_a(module: type, name: str) -> bool:
    return any(base.__name__ == name for base in module.__mro__)


def _refuse(module: type) -> None:
    for name in _REFUSED:
        if _is_a(module, name):
            raise FreezeError(
                f"freezing under {name} is not verified yet; use one process, DDP, FSDP1, FSDP2 or DeepSpeed ZeRO"
            )
