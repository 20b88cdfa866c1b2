"""Whole weights of models that hold only parts of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor

from neurofreeze.neurons import canonical_name


def parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Canonical name -> parameter, whole or sharded."""
    return {canonical_name(name): p for name, p in model.named_parameters()}


def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A parameter's values, gathered where FSDP2 or ZeRO-3 hold parts of it. Collective there."""
    if isinstance(parameter, DTensor):
        return cast(DTensor, parameter.detach()).full_tensor()
    if hasattr(parameter, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()
