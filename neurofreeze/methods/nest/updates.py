"""Linear layers of which some rows get update vectors: y = x W^T, plus x u^T for every row that has the vector u.

The object stays the same and so do its names, only its class changes while vectors train. Its state dict then has the
folded weight, so that what is saved is the updated model, and the vectors beside it, so that training can go on.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

from neurofreeze.errors import FreezeError
from neurofreeze.methods.nest.choice import Rows, Updates
from neurofreeze.neurons import NeuronMap

VECTORS = "weight_updates"
_ROWS, _INDEX = "update_rows", "update_index"


class Updated:
    """What makes a linear layer one with update vectors; mixed into its class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer gives for `x` [..., in] with its updates folded in, without forming that weight."""
        module: Any = self
        _require_whole(module)
        own = F.linear(x, module.weight_updates.to(x.dtype))
        ordinary: torch.Tensor = super().forward(x)  # type: ignore[misc]
        return ordinary.index_add(-1, module.update_rows, own.index_select(-1, module.update_index))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        _require_whole(self)
        destination[f"{prefix}weight"] = folded(self)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        module: Any = self
        whole, vectors = state_dict.get(f"{prefix}weight"), state_dict.get(prefix + VECTORS)
        if whole is not None and vectors is not None:
            # Folding has rounded, so that what is underneath cannot be had from the sum; it is here already.
            if not torch.equal(folded(module, vectors.to(module.weight.device)), whole.to(module.weight.device)):
                raise FreezeError(
                    f"{prefix}weight is not the sum of this model's weight and the saved update vectors; they were "
                    "trained on another model"
                )
            state_dict[f"{prefix}weight"] = module.weight.detach()
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


def attach(model: Any, updates: Updates) -> Any:
    """Let only update vectors of `model` train, each of them 0 at first; returns the model.

    The vectors are the parameters `...weight_updates`, [vectors, in features], in float32 or the weight's precision if
    that is wider. Call it on the model as loaded, before it is wrapped by DDP or given to a trainer; `fold` makes it an
    ordinary one again.

    Raises:
        FreezeError: if it has vectors already, is wrapped or sharded, or a layer is no ordinary linear one.
        ModelError: if the updates belong to another model.
    """
    updates.check(NeuronMap.of(model))
    if any(isinstance(module, Updated) for module in model.modules()):
        raise FreezeError("the model has update vectors already; fold them in first")
    if not hasattr(model, "save_pretrained"):
        raise FreezeError(f"expected a transformers model that is not wrapped yet, found {type(model).__name__}")
    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in updates.by_weight}
    for name, layer in layers.items():
        _require_ordinary(name, layer)
    model.trained_before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.requires_grad_(False)
    for name, layer in layers.items():
        _attach(layer, updates.by_weight[name])
    return model


def fold(model: Any) -> Any:
    """Add the vectors to their rows, in float32 or wider and rounded once, and make the model ordinary again.

    Raises:
        FreezeError: if it has no update vectors.
    """
    found = getattr(model, "module", model)
    layers = [module for module in found.modules() if isinstance(module, Updated)]
    if not layers:
        raise FreezeError("the model has no update vectors; expected one that `attach` changed")
    for layer in layers:
        _fold(layer)
    for name, parameter in found.named_parameters():
        parameter.requires_grad_(name in found.trained_before)
    del found.trained_before
    return model


def folded(layer: Any, vectors: torch.Tensor | None = None) -> torch.Tensor:
    """The layer's weight with its own vectors, or these, in it; a new tensor."""
    weight, vectors = layer.weight.detach().clone(), (layer.weight_updates if vectors is None else vectors).detach()
    rows = weight[layer.update_rows].to(vectors.dtype) + vectors[layer.update_index]
    weight[layer.update_rows] = rows.to(weight.dtype)
    return weight


def _attach(layer: Any, rows: Rows) -> None:
    weight = layer.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    vectors = torch.zeros(rows.count, weight.shape[1], dtype=dtype, device=weight.device)
    layer.register_parameter(VECTORS, torch.nn.Parameter(vectors))
    for name, index in ((_ROWS, rows.rows), (_INDEX, rows.vectors)):
        layer.register_buffer(name, torch.from_numpy(index.copy()).to(weight.device), persistent=False)
    ordinary: type = type(layer)
    layer.__class__ = _updated(ordinary)


def _fold(layer: Any) -> None:
    _require_whole(layer)
    layer.weight.data = folded(layer)
    del layer._parameters[VECTORS], layer._buffers[_ROWS], layer._buffers[_INDEX]
    layer._non_persistent_buffers_set -= {_ROWS, _INDEX}
    layer.__class__ = type(layer).__bases__[1]


@cache
def _updated(ordinary: type) -> type:
    return type(f"Updated{ordinary.__name__}", (Updated, ordinary), {})


def _require_ordinary(name: str, layer: Any) -> None:
    _require_whole(layer)
    ordinary = getattr(type(layer), "forward", None) is torch.nn.Linear.forward
    if not ordinary or not layer.weight.is_floating_point():
        raise FreezeError(
            f"{name} is in a {type(layer).__name__}; update vectors need ordinary floating point linear layers, "
            "without adapters or quantization"
        )


def _require_whole(layer: Any) -> None:
    if isinstance(layer.weight, DTensor) or hasattr(layer.weight, "ds_id"):
        raise FreezeError(
            "update vectors train in one process or under DDP; this model is sharded by FSDP2, tensor parallelism or "
            "ZeRO-3. The vectors are small, and frozen weights need no gradients"
        )
