"""Every engine, ready to train the same model on the same tokens with the same optimizer."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks.models import Shape

_CLIP = 1.0


@dataclass(frozen=True)
class Training:
    """A prepared model (or DeepSpeed engine), its optimizer (None if the engine has its own), and one step of it."""

    model: Any
    optimizer: torch.optim.Optimizer | None
    step: Callable[[torch.Tensor], None]

    @property
    def module(self) -> nn.Module:
        found: nn.Module = getattr(self.model, "module", self.model)
        return found


@dataclass(frozen=True)
class Kind:
    """How to build an engine, and the names that the freezer may give it."""

    build: Callable[[Shape, torch.device], Training]
    names: tuple[str, ...]
    distributed: bool = True


def _adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)


def _torch(model: Any, clip: Callable[[], Any], autocast: bool = False) -> Training:
    optimizer = _adamw(model)

    def step(ids: torch.Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        clip()
        optimizer.step()
        optimizer.zero_grad()

    return Training(model, optimizer, step)


def _clip(model: nn.Module) -> Callable[[], Any]:
    return partial(torch.nn.utils.clip_grad_norm_, list(model.parameters()), _CLIP)


def _plain(shape: Shape, device: torch.device) -> Training:
    model = shape.model().to(device)
    return _torch(model, _clip(model), device.type == "cuda")


def _ddp(shape: Shape, device: torch.device) -> Training:
    model = DistributedDataParallel(shape.model().to(device))
    return _torch(model, _clip(model), device.type == "cuda")


def _fsdp2(shape: Shape, device: torch.device) -> Training:
    model = shape.model().to(device)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if device.type == "cuda" else MixedPrecisionPolicy()
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    return _torch(model, _clip(model))


def _fsdp1(shape: Shape, device: torch.device) -> Training:
    model = shape.model().to(device)
    sharded = FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({type(model.model.layers[0])}),
        mixed_precision=MixedPrecision(param_dtype=torch.bfloat16) if device.type == "cuda" else None,
        device_id=device,
        use_orig_params=True,
    )
    return _torch(sharded, partial(sharded.clip_grad_norm_, _CLIP))


def _zero(stage: int, shape: Shape, device: torch.device) -> Training:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", dist_init_required=False)
    model = shape.model()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": _CLIP,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": device.type == "cuda"},
    }
    engine = deepspeed.initialize(model=model, optimizer=_adamw(model), config=config)[0]

    def step(ids: torch.Tensor) -> None:
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()

    return Training(engine, None, step)


ENGINES: dict[str, Kind] = {
    "plain": Kind(_plain, ("plain",), distributed=False),
    "ddp": Kind(_ddp, ("ddp",)),
    "fsdp2": Kind(_fsdp2, ("fsdp2",)),
    "fsdp1": Kind(_fsdp1, ("fsdp1",)),
    "zero0": Kind(
        partial(_zero, 0),
        ("deepspeed stage 0 fp32", "deepspeed FP16_Optimizer", "deepspeed FP16_UnfusedOptimizer"),
    ),
    "zero1": Kind(partial(_zero, 1), ("deepspeed DeepSpeedZeroOptimizer",)),
    "zero2": Kind(partial(_zero, 2), ("deepspeed DeepSpeedZeroOptimizer",)),
    "zero3": Kind(partial(_zero, 3), ("deepspeed DeepSpeedZeroOptimizer_Stage3",)),
}
