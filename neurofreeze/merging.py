"""Merging adapters that were trained with frozen neurons into their base."""

from __future__ import annotations

from typing import Any

import torch

from neurofreeze.engines.lookup import find
from neurofreeze.errors import FreezeError
from neurofreeze.mask import NeuronMask


def merge_adapters(model: Any, mask: NeuronMask) -> Any:
    """The base with its adapters merged, every frozen element with the bits it has in `model`.

    As PEFT's `merge_and_unload`, which turns a frozen -0.0 into 0.0, and which does not know what was frozen.

    Args:
        model: a `PeftModel` in one process, with its weights in memory. Changed in place.
        mask: the neurons that were frozen.

    Raises:
        FreezeError: if the base is quantized, or adapters are merged into it already. Or if the adapters change a
            frozen element; the model is then of no use any more.
    """
    _require_unmerged(model)
    frozen = mask.dense(model)
    start = find(model, frozen)
    for name, p in start.items():
        if not p.is_floating_point() or p.shape != frozen[name].shape:
            raise FreezeError(
                f"{name} is quantized, so that merging would round it again; load the base in full precision, "
                "PeftModel.from_pretrained(base, adapter), and merge into that"
            )
    before = {name: p.detach()[frozen[name].to(p.device)] for name, p in start.items()}
    merged = model.merge_and_unload()
    for name, p in find(merged, frozen).items():
        where = frozen[name].to(p.device)
        if not torch.equal(p.detach()[where], before[name]):
            raise FreezeError(f"merging changes frozen elements of {name}; the adapters were trained without this mask")
        with torch.no_grad():
            p[where] = before[name]
    return merged


def _require_unmerged(model: Any) -> None:
    # The weights are taken for those of the base.
    for name, module in model.named_modules():
        merged = getattr(module, "merged_adapters", ())
        if merged:
            raise FreezeError(
                f"{name} has {', '.join(merged)} merged into it, so that what the base was is not known; call "
                "model.unmerge_adapter() first, or merge and compare with `neurofreeze verify`"
            )
