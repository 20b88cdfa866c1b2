"""Pruning without touching weights: the chosen neurons' activations are zero while a block of code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from neurofreeze.activations import Flow, See, tapped
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap


@contextmanager
def ablated(model: Any, mask: NeuronMask, *, training_only: bool = False) -> Iterator[None]:
    """Within the block, every forward pass of `model` runs without the neurons that `mask` chooses.

    What flows into a block's second matrix is set to zero at the neuron's channels, which is what removing its weights
    would do; of a neuron of an expert, on the tokens that reach this expert.

    Args:
        model: a transformers causal language model.
        mask: the neurons to go without.
        training_only: leave the model whole while it is in evaluation mode.

    Raises:
        MaskError: if the mask is for another model.
        ArchitectureError: if the mask chooses neurons of experts that cannot be watched.
    """
    neuron_map = NeuronMap.of(model, mask.config.granularity)  # type: ignore[arg-type]
    mask.check(neuron_map)
    channels = {
        site.module: torch.from_numpy(site.writes.index[mask.bits[name]].reshape(-1))
        for name, site in neuron_map.sites.items()
        if mask.bits[name].any()
    }

    def applies() -> bool:
        return model.training or not training_only

    with tapped(model, {(module, "input"): _without(chosen, applies) for module, chosen in channels.items()}):
        yield


def _without(channels: torch.Tensor, applies: Callable[[], bool]) -> See:
    def see(flow: Flow) -> torch.Tensor | None:
        if not applies():
            return None
        values, chosen = flow.values, channels.to(flow.values.device)
        if flow.routing is None:
            return values.index_fill(-1, chosen, 0)
        # Channels of all experts are counted through.
        counts = flow.routing.counts
        silent = torch.zeros(len(counts) * values.shape[-1], dtype=torch.bool, device=values.device)
        silent[chosen] = True
        each = torch.tensor(counts, device=values.device)
        return values.masked_fill(silent.view(len(counts), -1).repeat_interleave(each, dim=0), 0)

    return see
