"""Pruning without touching weights: the chosen neurons' activations are zero while a block of code runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap, canonical_name


@contextmanager
def ablated(model: Any, mask: NeuronMask) -> Iterator[None]:
    """Within the block, every forward pass of `model` runs without the neurons that `mask` chooses.

    What flows into a block's second matrix is set to zero at the neuron's channels, which is what removing its weights
    would do.

    Raises:
        MaskError: if the mask is for another model.
    """
    neuron_map = NeuronMap.of(model, mask.config.granularity)  # type: ignore[arg-type]
    mask.check(neuron_map)
    modules = {canonical_name(name): module for name, module in model.named_modules()}
    with ExitStack() as stack:
        for name, site in neuron_map.sites.items():
            channels = torch.from_numpy(site.writes.index[mask.bits[name]].reshape(-1))
            if len(channels):
                stack.callback(modules[site.module].register_forward_pre_hook(_without(channels)).remove)
        yield


def _without(channels: torch.Tensor) -> Any:
    def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return inputs[0].index_fill(-1, channels.to(inputs[0].device), 0), *inputs[1:]

    return hook
