"""Watching the chosen neurons while a model answers: one row for each prompt, from the pass that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from neurofreeze.activations import Flow, See, tapped
from neurofreeze.errors import DataError
from neurofreeze.guard.monitor.pooling import Pooling, pooled, token_weights
from neurofreeze.guard.monitor.reference import Array
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap


@contextmanager
def watching(model: Any, mask: NeuronMask, pooling: Pooling, see: Callable[[Array], object]) -> Iterator[None]:
    """Within the block, call `see` with the activations of the mask's neurons for each prompt the model reads.

    Whatever the model computes stays as it is, bit for bit, but for stacks of experts: those run by this library's
    implementation while they are watched, which agrees with transformers' to rounding. A pass counts that begins with
    an empty cache; passes that go on from a cache, as every further token of an answer does, cost a call a site.

    Args:
        model: a transformers causal language model, the object that is called or whose `generate` is.
        mask: the neurons, in the order of sites and then neurons.
        pooling: over the prompt's tokens.
        see: takes float64 [rows, neurons].

    Raises:
        MaskError: if the mask is for another model.
        ArchitectureError: if its experts cannot be watched.
        DataError: in a pass whose attention mask is not [rows, length].
    """
    neuron_map = NeuronMap.of(model, mask.config.granularity)  # type: ignore[arg-type]
    mask.check(neuron_map)
    passing = _Pass(pooling, see)
    taps: dict[Any, See] = {}
    for name, bits in mask.bits.items():
        if bits.any():
            site = neuron_map.sites[name]
            taps[site.module, "input"] = passing.tap(name, torch.from_numpy(site.writes.index[bits]))
    # A PEFT model calls the model inside to generate, and the forward method of that alone when it is itself called.
    callees = [model, *([model.get_base_model()] if hasattr(model, "get_base_model") else [])]
    with ExitStack() as stack:
        for callee in callees:
            stack.callback(callee.register_forward_pre_hook(passing.begin, with_kwargs=True).remove)
        stack.enter_context(tapped(model, taps))
        for callee in callees:
            stack.callback(callee.register_forward_hook(passing.end).remove)
        yield


class _Pass:
    """One forward pass at a time."""

    def __init__(self, pooling: Pooling, see: Callable[[Array], object]) -> None:
        self._pooling: Pooling = pooling
        self._see = see
        self._sites: list[str] = []
        self._weights: torch.Tensor | None = None  # None in a pass that does not count
        self._found: dict[str, torch.Tensor] = {}

    def tap(self, name: str, index: torch.Tensor) -> See:
        self._sites.append(name)

        def see(flow: Flow) -> None:
            nonlocal index
            if self._weights is not None:
                values = flow.values.detach()
                index = index.to(values.device)
                self._found[name] = pooled(flow._replace(values=values), self._weights.to(values.device), index)

        return see

    def begin(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._found.clear()  # of a pass that failed
        cache = kwargs.get("past_key_values")
        self._weights = None
        if cache is None or int(cache.get_seq_length()) == 0:
            attention = _attention(args, kwargs)
            self._weights = token_weights(attention, self._pooling)

    def end(self, *_: Any) -> None:
        if self._weights is not None:
            self._weights = None
            parts = [self._found[name].cpu() for name in self._sites]
            self._found.clear()
            self._see(torch.cat(parts, 1).double().numpy())


def _attention(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Bool [rows, length], False on padding."""
    ids = args[0] if args else kwargs.get("input_ids")
    shape = tuple(ids.shape) if ids is not None else tuple(kwargs["inputs_embeds"].shape[:2])
    mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
    if mask is None:
        device = ids.device if ids is not None else kwargs["inputs_embeds"].device
        return torch.ones(shape, dtype=torch.bool, device=device)
    if not isinstance(mask, torch.Tensor) or tuple(mask.shape) != shape:
        found = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise DataError(
            f"the attention mask is {found}, the tokens are {shape}; a monitor needs a mask of [rows, length] to leave "
            "padding out: give one, without a static cache or packed rows"
        )
    return mask.bool()
