"""Reading a PEFT model: which parts of its LoRA adapters belong to frozen neurons. What else PEFT can do is refused."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from neurofreeze.adapters import Adapters, Part
from neurofreeze.errors import FreezeError
from neurofreeze.neurons import IndexArray, Selection, canonical_name

# PEFT's layers that compute base(x) + scaling * B(A(dropout(x))).
_LINEAR = ("Linear", "Linear4bit", "Linear8bitLt")
_QUANTIZED = ("Linear4bit", "Linear8bitLt")
_NONE = np.empty(0, np.int64)

Shapes = Mapping[str, tuple[int, ...]]
Selections = Mapping[str, Selection]


def find_adapters(model: nn.Module, selections: Selections, shapes: Shapes) -> Adapters:
    """What must be held at zero in the adapters of `model` so that the selected weights stay as they are.

    Args:
        model: wrapped or not, with adapters or without.
        selections: of weights of the base.
        shapes: of all its weights; those of a quantized base itself are never looked at.

    Biases of quantized layers are rounded here, as those layers do in their first forward pass.

    Raises:
        FreezeError: if a selected weight has an adapter that cannot be frozen exactly.
    """
    if "peft" not in sys.modules:
        return Adapters()
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    _require_lora(model)
    names = _names(model, selections)
    shapes = {**shapes, **{name: shapes[own] for name, own in names.items()}}
    parts: dict[str, Part] = {}
    adapted: list[str] = []
    quantized: list[str] = []
    active = []
    for wrapped, module in model.named_modules():
        path = canonical_name(f"{wrapped}.").removesuffix(".")
        masked = {name: selections[own] for name, own in names.items() if name.startswith(f"{path}.")}
        if isinstance(module, AuxiliaryTrainingWrapper) and masked:
            raise FreezeError(
                f"{path} holds frozen neurons and PEFT trains a copy of it (modules_to_save); leave it out of "
                "modules_to_save and give it a LoRA adapter"
            )
        if isinstance(module, BaseTunerLayer):
            active.append((module, tuple(module.active_adapters)))
            if masked:
                parts.update(_parts(path, module, masked, shapes))
                adapted += [names[name] for name in masked]
        elif masked and type(module).__name__ in _QUANTIZED:
            quantized += [names[name] for name in masked if name == f"{path}.weight"]
            _round_bias(module)
    if not active:
        return Adapters()
    trained: Counter[str] = Counter()
    for name, p in model.named_parameters():
        if p.requires_grad:
            # Of adapters in one another, on experts, the names differ only by the wrapping.
            trained[canonical_name(name)] += _numel(p)
    return Adapters(parts, tuple(adapted), tuple(quantized), trained, tuple(active))


def _names(model: nn.Module, selections: Selections) -> dict[str, str]:
    """Each name of a selected weight -> the one it is selected by; of a tied one every module has its own."""
    found = [(canonical_name(name), p) for name, p in model.named_parameters(remove_duplicate=False)]
    own = {id(p): name for name, p in found if name in selections}
    return {name: name for name in selections} | {name: own[id(p)] for name, p in found if id(p) in own}


def _require_lora(model: nn.Module) -> None:
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        for name, config in configs.items() if isinstance(configs, dict) else ():
            kind = getattr(config.peft_type, "value", config.peft_type)
            if kind != "LORA":
                raise FreezeError(
                    f"the adapter {name!r} is of type {kind}; under it frozen neurons would not stay bit for bit as "
                    "they are. Use LoraConfig, or train without an adapter"
                )


def _parts(path: str, layer: Any, masked: Selections, shapes: Shapes) -> Iterator[tuple[str, Part]]:
    """Parameter name -> part, for every adapter of a layer that is in use or trains."""
    kind = next(base for base in type(layer).__mro__ if base.__module__.startswith("peft."))
    if not (kind.__module__.startswith("peft.tuners.lora.") and kind.__name__ in _LINEAR):
        raise FreezeError(
            f"{path} holds frozen neurons and PEFT adapts it by {kind.__module__}.{kind.__name__}; only LoRA of linear "
            "layers can be frozen exactly. Leave it out of target_modules and target_parameters"
        )
    if layer.merged:
        raise FreezeError(f"{path}: the adapters are merged into the weight; call model.unmerge_adapter() first")
    rows, columns, bias = _lines(path, layer, masked, shapes)
    for adapter in layer.lora_A:
        a, b = layer.lora_A[adapter], layer.lora_B[adapter]
        if adapter not in layer.active_adapters and not any(p.requires_grad for m in (a, b) for p in m.parameters()):
            continue
        if adapter in layer.lora_variant:
            raise FreezeError(
                f"{path}: the adapter {adapter!r} is a {type(layer.lora_variant[adapter]).__name__}, which does more "
                "to the weight than add B @ A (DoRA rescales it); use plain LoRA, use_dora=False"
            )
        a_name, b_name = f"{path}.lora_A.{adapter}.weight", f"{path}.lora_B.{adapter}.weight"
        if len(columns):
            yield a_name, Part(Selection(1, columns), (layer.r[adapter], layer.in_features), partner=b_name)
        if len(rows):
            yield b_name, Part(Selection(0, rows), (layer.out_features, layer.r[adapter]), partner=a_name)
        if len(bias) and b.bias is not None:
            yield f"{path}.lora_B.{adapter}.bias", Part(Selection(0, bias), (layer.out_features,))


def _lines(path: str, layer: Any, masked: Selections, shapes: Shapes) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Frozen rows and columns of the product B @ A, and frozen elements of its bias."""
    # transformers' Conv1D keeps its weight transposed, [in, out].
    transposed = type(layer.get_base_layer()).__name__ == "Conv1D"
    if bool(layer.fan_in_fan_out) != transposed:
        raise FreezeError(
            f"{path} is a {type(layer.get_base_layer()).__name__} adapted with fan_in_fan_out="
            f"{layer.fan_in_fan_out}; set fan_in_fan_out={transposed}"
        )
    rows = columns = _NONE
    weight = masked.get(f"{path}.weight")
    if weight is not None:
        shape = shapes[f"{path}.weight"]
        if (layer.out_features, layer.in_features) != (shape[::-1] if transposed else shape):
            raise FreezeError(
                f"{path} maps {layer.in_features} to {layer.out_features} features, its config says its weight has "
                f"shape {shape}; the model was changed after it was built"
            )
        if weight.axis == int(transposed):
            rows = weight.index
        else:
            columns = weight.index
    bias = masked.get(f"{path}.bias")
    return rows, columns, rows if bias is None else np.union1d(rows, bias.index)


def _round_bias(layer: Any) -> None:
    # bitsandbytes does this in place when it first computes, which would count as a change of frozen elements.
    dtype = getattr(layer, "compute_dtype", None)
    if layer.bias is not None and dtype is not None:
        layer.bias.data = layer.bias.data.to(dtype)


def _numel(parameter: Any) -> int:
    # ZeRO-3 has parameters released to shape (0,).
    return math.prod(getattr(parameter, "ds_shape", parameter.shape))
