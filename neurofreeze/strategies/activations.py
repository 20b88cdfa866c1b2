"""Watching what flows into the second matrix of every block, token by token, without keeping it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch

from neurofreeze.data.batches import Batch
from neurofreeze.errors import DataError
from neurofreeze.neurons import NeuronMap, Site, canonical_name


@torch.no_grad()
def watch_inputs(
    model: Any,
    neuron_map: NeuronMap,
    batches: Iterable[Batch],
    update: Callable[[Site, torch.Tensor], None],
    progress: Callable[[], None] | None = None,
) -> None:
    """Run the batches through the model, handing each site its activations.

    Args:
        model: a transformers causal language model; its training mode is restored afterwards.
        neuron_map: its neurons.
        batches: right-padded batches.
        update: called per site and batch with the activations of all tokens that are not padding, [tokens, channels].
        progress: called after each batch.

    Raises:
        DataError: if there is no batch.
    """
    modules = {canonical_name(name): module for name, module in model.named_modules()}
    attention: torch.Tensor | None = None

    def hook(site: Site) -> Callable[..., None]:
        def forward_pre_hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            assert attention is not None
            # Flat first: OPT's MLP already gets its tokens as [rows * length, channels].
            update(site, args[0].flatten(0, -2)[attention.flatten()])

        return forward_pre_hook

    training, seen = model.training, False
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        for site in neuron_map.sites.values():
            stack.callback(modules[site.module].register_forward_pre_hook(hook(site)).remove)
        for batch in batches:
            batch = batch.to(model.device)
            attention = batch.attention_mask.bool()
            # The base model: scores need no logits, and the vocabulary is the widest matrix of a small model.
            model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            seen = True
            if progress is not None:
                progress()
    if not seen:
        raise DataError("the calibration set is empty; expected at least one prompt with its answer")
