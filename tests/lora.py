"""LoRA on the tiny models, and what of its adapters frozen neurons are, worked out from dense masks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from tests import reference
from tests.reference import Dense, bits

# Modules that write to the residual stream, over all tiny models.
WRITES = ("o_proj", "out_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h")


def adapted(base: Any, seed: int = 3, autocast_adapter_dtype: bool = True, **options: Any) -> Any:
    """A copy of `base` with a fresh adapter on every linear layer of its blocks."""
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", **options})
    return get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=autocast_adapter_dtype)


def trainable(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def adamw(model: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(trainable(model), lr=0.05, weight_decay=0.1, eps=1e-2)


def dense(model: Any, base: Dense) -> Dense:
    """Parameter name of the PEFT model -> bool tensor, True where frozen, given the dense masks of the base."""
    return {name: _of(name, p, base) for name, p in model.named_parameters()}


def zero(model: Any, frozen: Dense) -> None:
    """Set what is frozen of the adapters to zero."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_" in name:
                p[frozen[name]] = 0


def merged(model: Any) -> dict[str, torch.Tensor]:
    """The weights that a user gets who merges the adapters by PEFT's own means."""
    return reference.weights(copy.deepcopy(model).merge_and_unload())


def changed(now: dict[str, torch.Tensor], start: dict[str, torch.Tensor], where: Dense) -> int:
    """Number of elements in `where` that differ in their bits."""
    return sum(int((bits(now[name]) != bits(start[name]))[where[name]].sum()) for name in start)


def trained(now: dict[str, torch.Tensor], start: dict[str, torch.Tensor], frozen: Dense) -> int:
    """Number of elements that are not frozen and changed."""
    return changed(now, start, {name: ~where for name, where in frozen.items()})


def _of(name: str, parameter: torch.Tensor, base: Dense) -> torch.Tensor:
    plain = name.removeprefix("base_model.model.").replace("base_layer.", "")
    module, _, factor = plain.partition(".lora_")
    if ".modules_to_save." in plain or (factor and not base[f"{module}.weight"].any()):
        return torch.zeros(parameter.shape, dtype=torch.bool)
    if not factor:
        return base[plain]
    weight = base[f"{module}.weight"]
    leaf = module.rpartition(".")[2]
    if leaf.startswith("c_"):  # GPT-2's weights are [in, out]
        weight = weight.T
    rows, columns = weight.all(1), weight.all(0)
    # Where everything is frozen, rows and columns are; what writes is frozen by columns.
    rows, columns = (rows & False, columns) if leaf in WRITES else (rows, columns & False)
    assert rows.any() or columns.any()
    if factor.startswith("A"):
        return columns.expand(parameter.shape)
    return (rows if parameter.dim() == 1 else rows[:, None]).expand(parameter.shape)
