"""An engine for a model of which only some parameters train, as PEFT and `freeze_rest` leave it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from neurofreeze.engines.base import Engine, Gradient, Shard
from neurofreeze.engines.deepspeed import ZeroShard
from neurofreeze.engines.fsdp2 import DTensorShard
from neurofreeze.engines.lookup import find
from neurofreeze.engines.plain import PlainShard
from neurofreeze.errors import FreezeError


class PartialEngine:
    """Another engine, which also finds the shards of parameters that require no gradient and are in no optimizer."""

    def __init__(self, engine: Engine, model: nn.Module) -> None:
        if engine.name == "fsdp1":
            raise FreezeError(
                "freezing adapters, or parameters without gradients, under FSDP1 is not verified; use FSDP2"
            )
        self.engine = engine
        self.model = model

    @property
    def name(self) -> str:
        """The other engine's."""
        return self.engine.name

    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The other engine's."""
        return self.engine.optimizers()

    def shards(self, names: Collection[str]) -> list[Shard]:
        """What this rank holds of the named parameters, trained or not."""
        trained, rest = self._split(names)
        return [*self.engine.shards(trained), *(self._shard(name, p) for name, p in rest.items())]

    def gradients(self, names: Collection[str]) -> Sequence[Gradient]:
        """The gradients of those of the named parameters that have any."""
        return self.engine.gradients(self._split(names)[0])

    def gradients_at_step(self, names: Collection[str]) -> Sequence[Gradient]:
        """The gradients of those of the named parameters that have any."""
        return self.engine.gradients_at_step(self._split(names)[0])

    def _split(self, names: Collection[str]) -> tuple[list[str], dict[str, nn.Parameter]]:
        parameters = find(self.model, names)
        rest = {name: p for name, p in parameters.items() if not p.requires_grad}
        return [name for name in names if name not in rest], rest

    def _shard(self, name: str, parameter: Any) -> Shard:
        if hasattr(parameter, "ds_id"):
            return _partition_of(name, parameter)
        kind = DTensorShard if isinstance(parameter, DTensor) else PlainShard
        return kind(name, parameter, self.optimizers()[0])


def _partition_of(name: str, parameter: Any) -> ZeroShard:
    """ZeRO-3 cuts every parameter into equal slices, the last one padded."""
    numel = parameter.ds_tensor.numel()
    return ZeroShard(
        name,
        parameter,
        (),
        owner=partial(_slice, parameter),
        offset=0,
        start=dist.get_rank(parameter.ds_process_group) * numel,
        numel=numel,
        low_precision=partial(_slice, parameter),
    )


def _slice(parameter: Any) -> torch.Tensor:
    found: torch.Tensor = parameter.ds_tensor.data.view(-1)
    return found
