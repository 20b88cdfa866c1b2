"""Watching places in a model while calibration data flows through it, batch by batch, without keeping it.

On several ranks each takes every so-manieth batch and the statistics are merged in rank order: float64 sums in another
order, so scores agree to about 1e-12 before they are rounded to float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple, Protocol

import torch

from neurofreeze.data.batches import Batch
from neurofreeze.distributed import gather
from neurofreeze.neurons import NeuronMap, Site, canonical_name
from neurofreeze.strategies import passes

Positions = Literal["all", "prompt", "response"]


class Point(NamedTuple):
    """A place in a model: what flows into or out of a module."""

    module: str
    side: Literal["input", "output"]

    @classmethod
    def activations(cls, site: Site) -> Point:
        """Where a site's activations are: the input of its row-parallel matrix, act(gate) * up in a gated MLP."""
        return cls(site.module, "input")


class Tokens(NamedTuple):
    """What one batch brings to a point.

    Attributes:
        values: float [rows, length, channels].
        attention: bool [rows, length], False on padding.
        response: bool [rows, length], True on the tokens of the answer.
    """

    values: torch.Tensor
    attention: torch.Tensor
    response: torch.Tensor

    def chosen(self, positions: Positions) -> torch.Tensor:
        """Bool [rows, length]: all tokens that are not padding, those of the prompt, or those of the answer."""
        if positions == "all":
            return self.attention
        return self.response if positions == "response" else self.attention & ~self.response

    def flat(self, positions: Positions = "all") -> torch.Tensor:
        """Float [tokens, channels]."""
        return self.values[self.chosen(positions)]

    def pooled(self, pooling: Literal["mean", "max"], positions: Positions = "all") -> torch.Tensor:
        """Float64 [prompts, channels]: over each prompt's tokens; prompts without such tokens are left out."""
        chosen = self.chosen(positions)
        rows = chosen.any(1)
        values, chosen = self.values[rows].double(), chosen[rows][..., None]
        if pooling == "max":
            return values.masked_fill(~chosen, -torch.inf).amax(1)
        return (values * chosen).sum(1) / chosen.sum(1)


class Statistic(Protocol):
    """Something gathered over a stream of tokens, in memory that does not grow with it."""

    def update(self, tokens: Tokens) -> None:
        """Take in one batch."""
        ...

    def merge(self, other: Any) -> None:
        """Take in what another rank gathered."""
        ...


@torch.no_grad()
def observe(
    model: Any,
    batches: Sequence[Batch],
    watched: Sequence[Mapping[Point, Statistic]],
    progress: Callable[[], None] | None = None,
) -> None:
    """Run the batches through the model once, handing each statistic what flows past its point. Collective.

    Args:
        model: a transformers causal language model, wrapped by DDP, FSDP2 or DeepSpeed or not, spread over devices or
            not; its training mode is restored afterwards.
        batches: padded batches, the same on every rank.
        watched: statistics by point, one mapping a strategy; they are updated in place, and equal on all ranks at the
            end.
        progress: called after each batch of this rank.

    Raises:
        DataError: if there is no batch.
    """
    passes.require_some(batches)
    now: list[Batch | None] = [None]

    def hook(point: Point, statistics: list[Statistic]) -> Callable[..., None]:
        def see(_: Any, inputs: tuple[torch.Tensor, ...], output: Any = None) -> None:
            if now[0] is not None:
                tokens = _tokens(inputs[0] if point.side == "input" else output, now[0])
                for statistic in statistics:
                    statistic.update(tokens)

        return see

    by_point: dict[Point, list[Statistic]] = {}
    for mapping in watched:
        for point, statistic in mapping.items():
            by_point.setdefault(point, []).append(statistic)
    modules = {canonical_name(name): module for name, module in model.named_modules()}
    with ExitStack() as stack:
        stack.callback(model.train, model.training)
        model.eval()
        for point, statistics in by_point.items():
            module, see = modules[point.module], hook(point, statistics)
            register = module.register_forward_pre_hook if point.side == "input" else module.register_forward_hook
            stack.callback(register(see).remove)
        for batch, counts in passes.turns(batches):
            now[0] = batch if counts else None
            forward(model, batch)
            if progress is not None:
                progress()
    _merge(by_point)


def forward(model: Any, batch: Batch) -> None:
    """Run a batch through the model, without logits where the architecture can leave them out."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    unwrapped = getattr(model, "module", model)
    # Scores need no logits, and the vocabulary is the widest matrix of a small model.
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(unwrapped.forward).parameters else {}
    batch = batch.to(device)
    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **few)


def at_sites(neuron_map: NeuronMap, make: Callable[[], Statistic]) -> dict[Point, Statistic]:
    """One new statistic for the activations of every site."""
    return {Point.activations(site): make() for site in neuron_map.sites.values()}


def _tokens(values: torch.Tensor, batch: Batch) -> Tokens:
    attention = batch.attention_mask.bool().to(values.device)
    # OPT's MLP already gets its tokens as [rows * length, channels].
    return Tokens(values.view(*attention.shape, -1), attention, batch.response_mask.to(values.device))


def _merge(by_point: Mapping[Point, list[Statistic]]) -> None:
    for statistics in by_point.values():
        for statistic in statistics:
            first, *others = gather(statistic)
            statistic.__dict__.update(first.__dict__)
            for other in others:
                statistic.merge(other)
