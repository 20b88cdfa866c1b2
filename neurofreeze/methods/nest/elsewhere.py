"""Whether anything but the rows with vectors changed, from the files alone."""

from __future__ import annotations

from pathlib import Path

import torch

from neurofreeze.checkpoints import open_weights
from neurofreeze.errors import ModelError
from neurofreeze.methods.nest.choice import Updates


def changed_elsewhere(base: Path, tuned: Path, updates: Updates) -> int:
    """How many elements differ in at least one bit between two checkpoints that are in no row with a vector.

    Raises:
        ModelError: if the checkpoints do not have the same parameters in the same shapes and precision.
    """
    count = 0
    with open_weights(base) as before, open_weights(tuned) as after:
        shapes = [{name: weights.shape(name) for name in weights} for weights in (before, after)]
        if shapes[0] != shapes[1]:
            names = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
            raise ModelError(f"{base} and {tuned} do not have the same parameters: {', '.join(names[:3])}")
        for name in before:
            changed = _bits(before[name]) != _bits(after[name])
            if name in updates.by_weight:
                changed[updates.by_weight[name].rows] = False
            count += int(changed.sum())
    return count


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
