"""Neurons among the strongest on every harmful prompt but not on every ordinary one (SN-Tune, Zhao et al., ICLR 2025).

A neuron's magnitude on a prompt is |a| pooled over its tokens, a being the input of the block's second matrix. Each
prompt has its top k; a neuron's score is the share of the harmful prompts whose top k it is in. Foundation neurons,
those in the top k of every ordinary prompt, score 0. So the paper's sets are one rule,

    scores.above(1 - 1e-6)

for fewer than a million prompts: with `subtract_foundation` (default) those of RSN-Tune, the intersection over harmful
prompts minus the intersection over ordinary ones, and without it those of SN-Tune, the former alone. A lower threshold
relaxes "every harmful prompt".

The paper ranks by how much the hidden state changes when a neuron is removed, which for an MLP neuron is |a_j| times
the norm of its column; the score here is the activation alone. Its code takes the top 2000 MLP neurons of a layer (14 %
of Mistral-7B's); k is a share here, so that it means the same in every model. The paper arrives at less than 1 % of the
parameters.

A neuron of an expert is pooled over those of a prompt's tokens that reached this expert, before their routing weights.
It is in no top k of a prompt of which none did; k stays a share of all neurons, those of the other experts too.

When to use it: forward passes only; to tune or freeze very few neurons. The more prompts, the smaller the intersection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from neurofreeze.errors import DataError
from neurofreeze.neurons import NeuronMap, Site
from neurofreeze.strategies.base import Seen
from neurofreeze.strategies.observing import Point, Positions, Statistic, Tokens
from neurofreeze.strategies.options import require, require_one_of, require_switch
from neurofreeze.strategies.scores import NeuronScores, Per

Pooling = Literal["mean", "max"]


@dataclass(frozen=True)
class SNTune:
    """Shares of prompts; a head's magnitude is the mean over its channels.

    Args:
        k: the top k of a prompt, as a share of the neurons that are ranked together; at least one neuron.
        per: what is ranked together: each "site" (the paper), "layer", "kind", or the whole "model".
        pooling: "mean" or "max" of |a| over a prompt's tokens.
        positions: which tokens: those of the "prompt" (the paper), of the "response", or "all".
        subtract_foundation: give foundation neurons the score 0; reads the utility set.
        foundation_share: the share of ordinary prompts whose top k a foundation neuron is in; 1 is all of them.

    Raises:
        ConfigError: for an unknown choice, or a share outside (0, 1].
    """

    k: float = 0.15
    per: Per = "site"
    pooling: Pooling = "mean"
    positions: Positions = "prompt"
    subtract_foundation: bool = True
    foundation_share: float = 1.0
    name: str = "sn_tune"

    def __post_init__(self) -> None:
        require_one_of("per", self.per, Per)
        require_one_of("pooling", self.pooling, Pooling)
        require_one_of("positions", self.positions, Positions)
        require_switch("subtract_foundation", self.subtract_foundation)
        for option in ("k", "foundation_share"):
            require(0 < getattr(self, option) <= 1, option, getattr(self, option), "a number in (0, 1]")

    @property
    def sets(self) -> tuple[str, ...]:
        """Both sets, or "safety" alone where there is no foundation to subtract."""
        return ("safety", "utility") if self.subtract_foundation else ("safety",)

    def watch(self, neuron_map: NeuronMap) -> dict[Point, Statistic]:
        """How often each neuron is in a prompt's top k."""
        rankings: dict[Any, Ranking] = {}
        found: dict[Point, Statistic] = {}
        for site in neuron_map.sites.values():
            key = {"site": site.name, "layer": site.layer, "kind": site.kind, "model": None}[self.per]
            ranking = rankings.setdefault(key, Ranking(self.k))
            found[Point.activations(site)] = ranking.enter(site, self.pooling, self.positions)
        return found

    def score(self, model: Any, neuron_map: NeuronMap, seen: Seen) -> NeuronScores:
        """The share of harmful prompts whose top k a neuron is in, 0 for foundation neurons.

        Raises:
            DataError: if no prompt has tokens at these positions.
        """
        values = {}
        for name, site in neuron_map.sites.items():
            share, *foundation = (self._share(role, seen[role][Point.activations(site)]) for role in self.sets)
            for other in foundation:
                share[other >= self.foundation_share] = 0
            values[name] = share.astype(np.float32)
        return NeuronScores(neuron_map, values, asdict(self))

    def _share(self, role: str, counted: TopCount) -> Any:
        if counted.prompts == 0:
            raise DataError(f"no prompt of the {role} set has tokens at positions={self.positions!r}")
        return counted.counts.numpy() / counted.prompts


class TopCount:
    """How many prompts have each neuron of a site in their top k: int64 [neurons]."""

    def __init__(self, site: Site, ranking: Ranking, pooling: Pooling, positions: Positions) -> None:
        self.index = torch.tensor(site.writes.index)
        self.ranking = ranking
        self.pooling: Pooling = pooling
        self.positions: Positions = positions
        self.counts = torch.zeros(site.neurons, dtype=torch.int64)
        self.prompts = 0

    def update(self, tokens: Tokens) -> None:
        """Rank a batch's prompts as soon as all that compete have seen it."""
        magnitudes = self._magnitudes(tokens._replace(values=tokens.values.abs())).cpu()
        self.ranking.take(self, magnitudes[:, self.index].mean(-1))

    def _magnitudes(self, tokens: Tokens) -> torch.Tensor:
        """Float64 [prompts, channels], -inf for those of experts that no token of the prompt reached."""
        if tokens.rows is None:
            return tokens.pooled(self.pooling, self.positions)
        prompts = tokens.prompts(self.positions)
        size = (len(prompts), len(tokens.counts), tokens.values.shape[-1])
        found = torch.full(size, -torch.inf, dtype=torch.float64, device=prompts.device)
        for expert, own in enumerate(tokens.by_expert()):
            reached = torch.isin(prompts, own.prompts(self.positions))
            found[reached, expert] = own.pooled(self.pooling, self.positions)
        return found.flatten(1)

    def merge(self, other: TopCount) -> None:
        """Add all that another has counted."""
        self.counts = self.counts + other.counts
        self.prompts += other.prompts

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was gathered: "counts" and "prompts"."""
        return {"counts": self.counts, "prompts": torch.tensor(self.prompts)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the place of what was gathered here."""
        self.counts, self.prompts = state["counts"], int(state["prompts"])

    def __getstate__(self) -> dict[str, Any]:
        # What ranks exchange; a ranking holds every other statistic.
        return {"counts": self.counts, "prompts": self.prompts}


class Ranking:
    """The sites whose neurons compete for a prompt's top k; holds one batch's magnitudes until all are there."""

    def __init__(self, k: float) -> None:
        self.k = k
        self.entrants: list[TopCount] = []
        self.waiting: dict[TopCount, torch.Tensor] = {}

    def enter(self, site: Site, pooling: Pooling, positions: Positions) -> TopCount:
        """A site's statistic, competing from now on."""
        self.entrants.append(TopCount(site, self, pooling, positions))
        return self.entrants[-1]

    def take(self, entrant: TopCount, magnitudes: torch.Tensor) -> None:
        """Take a site's magnitudes on a batch, float64 [prompts, neurons], and count once all have come.

        A neuron of magnitude -inf is in no top k.
        """
        self.waiting[entrant] = magnitudes
        if len(self.waiting) < len(self.entrants):
            return
        joined = torch.cat([self.waiting[entrant] for entrant in self.entrants], dim=1)
        # Sorting is stable, so equal magnitudes do not depend on the batch.
        order = joined.argsort(dim=1, descending=True, stable=True)
        best = order[:, : max(1, round(self.k * joined.shape[1]))]
        reached = joined.gather(1, best) > -torch.inf
        counts = torch.bincount(best[reached], minlength=joined.shape[1])
        for entrant, part in zip(self.entrants, counts.split([len(e.counts) for e in self.entrants]), strict=True):
            entrant.counts = entrant.counts + part
            entrant.prompts += len(joined)
        self.waiting.clear()
