"""Watching places in a model while calibration data flows through it, batch by batch, without keeping it.

Each of n ranks takes every n-th batch and the statistics are merged in rank order: float64 sums in another
order, so scores agree to about 1e-12 before they are rounded to float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple, Protocol

import torch

from neurofreeze.activations import Flow, See, Side, tapped
from neurofreeze.data.batches import Batch
from neurofreeze.distributed import gather
from neurofreeze.neurons import Site
from neurofreeze.strategies import passes
from neurofreeze.strategies.resuming import Parts, Resumable, Turns

Positions = Literal["all", "prompt", "response"]


class Point(NamedTuple):
    """A place in a model: what flows into or out of a module, or a stack of experts."""

    module: str
    side: Side

    @classmethod
    def activations(cls, site: Site) -> Point:
        """Where a site's activations are: the input of its row-parallel matrix, act(gate) * up in a gated MLP."""
        return cls(site.module, "input")


class Tokens(NamedTuple):
    """What one batch brings to a point.

    Attributes:
        values: float [rows, length, channels]; of experts [routed, channels], a token once for each that it reached.
        attention: bool [rows, length] or [routed], False on padding.
        response: bool [rows, length] or [routed], True on the tokens of the answer.
        rows: of experts, the row that each token is from, int64 [routed].
        counts: of experts, how many tokens reached each; they are expert by expert.
        memo: what `once` keeps; None to keep nothing.
    """

    values: torch.Tensor
    attention: torch.Tensor
    response: torch.Tensor
    rows: torch.Tensor | None = None
    counts: tuple[int, ...] = ()
    memo: dict[Any, torch.Tensor] | None = None

    def once(self, key: Any, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `make` makes of these tokens, made once for all who ask by this key: q, k and v read the same."""
        if self.memo is None:
            return make()
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def prompts(self, positions: Positions = "all") -> torch.Tensor:
        """Of experts, the rows that chosen tokens are from, int64 [prompts], ascending."""
        assert self.rows is not None
        return self.rows[self.chosen(positions)].unique()

    def by_expert(self) -> Iterator[Tokens]:
        """The tokens that reached each expert."""
        assert self.rows is not None
        parts = (tensor.split(self.counts) for tensor in (self.values, self.attention, self.response, self.rows))
        return (Tokens(*own) for own in zip(*parts, strict=True))

    def chosen(self, positions: Positions) -> torch.Tensor:
        """Bool [rows, length]: all tokens that are not padding, those of the prompt, or those of the answer."""
        if positions == "all":
            return self.attention
        return self.response if positions == "response" else self.attention & ~self.response

    def flat(self, positions: Positions = "all") -> Iterator[torch.Tensor]:
        """Float64 [tokens, channels] in pieces, which are copies."""
        values, index = self.values.flatten(0, -2), self.chosen(positions).flatten().nonzero()[:, 0]
        # On a CPU several times as fast as indexing by a mask.
        return (values.index_select(0, part).double() for part in index.split(_lines(values)))

    def pooled(self, pooling: Literal["mean", "max"], positions: Positions = "all") -> torch.Tensor:
        """Float64 [prompts, channels]: over each prompt's tokens; prompts without such tokens are left out."""
        chosen = self.chosen(positions)
        if self.rows is not None:
            return _pooled(pooling, self.values[chosen].double(), self.rows[chosen])
        counts = chosen.sum(1)
        if pooling == "max":
            # On a CPU several times as fast as masked_fill of the values.
            below = self.values.new_zeros(chosen.shape).masked_fill_(~chosen, -torch.inf)
            largest = torch.cat([(v + b[..., None]).amax(1) for v, b in pieces(self.values, below)])
            return largest[counts > 0].double()
        sums = torch.cat([(c[:, None] @ v.double())[:, 0] for v, c in pieces(self.values, chosen.double())])
        return sums[counts > 0] / counts[counts > 0, None]


def pieces(values: torch.Tensor, *beside: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The tensors in pieces along their first dimension, few enough values for a CPU's cache, enough for a GPU."""
    return zip(*(tensor.split(_lines(values)) for tensor in (values, *beside)), strict=True)


def _lines(values: torch.Tensor) -> int:
    elements = 1 << (17 if values.device.type == "cpu" else 26)
    return max(1, elements // values.shape[1:].numel())


class Statistic(Resumable, Protocol):
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
    turns: Turns | None = None,
) -> None:
    """Run the batches through the model once, handing each statistic what flows past its point. Collective.

    Args:
        model: a transformers causal language model, wrapped by DDP, FSDP2 or DeepSpeed or not, spread over devices or
            not; its training mode is restored afterwards.
        batches: padded batches, the same on every rank.
        watched: statistics by point, one mapping a strategy; they are updated in place, and equal on all ranks at the
            end.
        turns: takes the turns; without it nothing is told or kept.

    Raises:
        DataError: if there is no batch.
    """
    passes.require_some(batches)
    turns = turns or Turns()
    now: list[Batch | None] = [None]
    last: dict[tuple[int, int], tuple[torch.Tensor, Tokens]] = {}  # of one point, held so that its id stays its own

    def update(statistics: list[Statistic]) -> See:
        def see(flow: Flow) -> None:
            if now[0] is not None:
                same = (id(flow.values), 0 if flow.values.is_inference() else flow.values._version)
                if same not in last:
                    last.clear()
                    last[same] = (flow.values, _tokens(flow, now[0]))
                for statistic in statistics:
                    statistic.update(last[same][1])

        return see

    by_point: dict[Point, list[Statistic]] = {}
    for mapping in watched:
        for point, statistic in mapping.items():
            by_point.setdefault(point, []).append(statistic)
    with ExitStack() as stack:
        stack.callback(model.train, model.training)
        model.eval()
        stack.enter_context(tapped(model, {point: update(statistics) for point, statistics in by_point.items()}))
        for batch, counts in turns(passes.turns(batches), _together(watched)):
            now[0] = batch if counts else None
            forward(model, batch)
            last.clear()
    _merge(by_point)


def forward(model: Any, batch: Batch) -> None:
    """Run a batch through the model, without logits where the architecture can leave them out."""
    unwrapped = getattr(model, "module", model)
    # Scores need no logits, and the vocabulary is the widest matrix of a small model.
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(unwrapped.forward).parameters else {}
    batch = batch.to(passes.device(model))
    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **few)


def _tokens(flow: Flow, batch: Batch) -> Tokens:
    values = flow.values
    attention, response = batch.attention_mask.bool().to(values.device), batch.response_mask.to(values.device)
    if flow.routing is None:
        # OPT's MLP already gets its tokens as [rows * length, channels].
        return Tokens(values.view(*attention.shape, -1), attention, response, memo={})
    at, counts = flow.routing
    return Tokens(values, attention.flatten()[at], response.flatten()[at], at // attention.shape[1], counts)


def _pooled(pooling: Literal["mean", "max"], values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Values [tokens, channels] over the tokens of each row, for the rows that there are, in ascending order."""
    found, index, counts = rows.unique(return_inverse=True, return_counts=True)
    if pooling == "mean":
        return values.new_zeros(len(found), values.shape[1]).index_add(0, index, values) / counts[:, None]
    lowest = values.new_full((len(found), values.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, index[:, None].expand_as(values), values, "amax")


def _together(watched: Sequence[Mapping[Point, Statistic]]) -> Parts:
    return Parts(
        {
            f"{number}.{point.module}.{point.side}": statistic
            for number, mapping in enumerate(watched)
            for point, statistic in mapping.items()
        }
    )


def _merge(by_point: Mapping[Point, list[Statistic]]) -> None:
    for statistics in by_point.values():
        for statistic in statistics:
            # From the device where it was gathered to the CPU, where it is read.
            statistic.load_state_dict(statistic.state_dict())
            first, *others = gather(statistic)
            statistic.__dict__.update(first.__dict__)
            for other in others:
                statistic.merge(other)
