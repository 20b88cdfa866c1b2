"""What transcriptions of formulas start from: activations gathered one unpadded conversation at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from neurofreeze.config.location import conf_folder
from neurofreeze.data.batches import Batch
from tests.strategies.scoring import Rows

# The slice of a conversation that each choice of positions stands for, given where its answer begins.
PARTS = {
    "all": lambda start: slice(None),
    "prompt": lambda start: slice(None, start),
    "response": lambda start: slice(start, None),
}


def inputs(model: Any, names: Iterable[str], rows: Rows, positions: str = "all") -> dict[str, list[np.ndarray]]:
    """What flows into each module on each conversation, float64 [tokens, channels]."""
    modules, seen = dict(model.named_modules()), {}
    handles = []
    for name in names:
        seen[name] = []
        handles.append(modules[name].register_forward_hook(lambda _, args, out, to=seen[name]: to.append(args[0])))
    with torch.no_grad():
        for ids, _ in rows:
            model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    parts = [PARTS[positions](start) for _, start in rows]
    return {
        name: [x.double().flatten(0, -2).numpy()[part] for x, part in zip(found, parts, strict=True)]
        for name, found in seen.items()
    }


def left_padded(batches: Iterable[Batch]) -> list[Batch]:
    """The same conversations with their padding moved to the left."""
    moved = []
    for indices, *tensors in batches:
        lengths = tensors[1].sum(1).tolist()
        rolled = [
            torch.stack([row.roll(len(row) - length) for row, length in zip(t, lengths, strict=True)]) for t in tensors
        ]
        moved.append(Batch(indices, *rolled))
    return moved


def conf(name: str) -> Any:
    """conf/strategy/<name>.yaml, with `seed` as in conf/config.yaml."""
    found = OmegaConf.load(conf_folder() / "strategy" / f"{name}.yaml")
    return OmegaConf.to_object(OmegaConf.merge({"seed": 0}, found))
