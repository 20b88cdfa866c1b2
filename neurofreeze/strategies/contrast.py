"""Contrast of harmful with ordinary prompts (SafeNeuron, arXiv 2602.12158): effect size and activation shift.

A neuron's activation a is the input of its block's second matrix, act(gate) * up in a gated MLP, pooled over the tokens
of each prompt. With the mean and variance over the n_u unsafe and the n_s safe prompts:

- es, activation effect size: Cohen's d = (mean_u - mean_s) / s, s being the pooled standard deviation,
  s^2 = ((n_u - 1) var_u + (n_s - 1) var_s) / (n_u + n_s - 2);
- sas, safety activation shift: z = (D - mean D) / std D with D = mean_u - mean_s, over all neurons of the layer's site.

Safety neurons are ES, those with d > tau_es, together with SAS, those with z > tau_sas and D > 0. The statistic "union"
is max(d / tau_es, z / tau_sas), so that `scores.above(1)` is exactly their union and `scores.top` ranks by how far a
neuron passes its threshold. Where D is not positive, z counts as at most 0.

The paper takes tau_es = 3 for Qwen and 2 for Llama, and tau_sas = 2. How tokens are pooled it does not say.

The prompts of an expert are those of which a token reached it, and its tokens are those that did, before their routing
weights. Where an expert has fewer than two prompts of a set, its neurons have d = z = D = 0, and no part in mean D and
std D.

When to use it: to find what *responds* to harm rather than what shapes the output; forward passes only, both sets at
once. It sees differences in the mean alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from neurofreeze.errors import DataError
from neurofreeze.mask import FloatArray
from neurofreeze.neurons import NeuronMap, Site
from neurofreeze.strategies.base import Seen
from neurofreeze.strategies.by_expert import ByExpert, each, statistic_for
from neurofreeze.strategies.observing import Point, Positions, Statistic
from neurofreeze.strategies.options import require, require_one_of, require_switch
from neurofreeze.strategies.scores import NeuronScores
from neurofreeze.strategies.statistics import RunningMoments

Contrasts = Literal["es", "sas", "union"]
Pooling = Literal["mean", "max"]

_SINGLE = np.finfo(np.float32)


@dataclass(frozen=True)
class Contrast:
    """SafeNeuron's scores.

    Args:
        statistic: "es", "sas", or "union" of both.
        tau_es: the effect size that makes a neuron a safety neuron; used by "union" only.
        tau_sas: likewise the z-score.
        pooling: "mean" or "max" over a prompt's tokens.
        positions: which tokens: those of the "prompt", of the "response", or "all".
        attention: score attention neurons too, a head by the means of d, z and D over its channels. The paper looks at
            MLP neurons only; without it no attention neuron has a score.

    Raises:
        ConfigError: for an unknown choice, or a threshold that is not positive.
    """

    statistic: Contrasts = "union"
    tau_es: float = 2.0
    tau_sas: float = 2.0
    pooling: Pooling = "mean"
    positions: Positions = "prompt"
    attention: bool = False
    name: str = "contrast"
    sets: ClassVar[tuple[str, ...]] = ("safety", "utility")

    def __post_init__(self) -> None:
        require_one_of("statistic", self.statistic, Contrasts)
        require_one_of("pooling", self.pooling, Pooling)
        require_one_of("positions", self.positions, Positions)
        require_switch("attention", self.attention)
        for option in ("tau_es", "tau_sas"):
            require(getattr(self, option) > 0, option, getattr(self, option), "a number above 0")

    def watch(self, neuron_map: NeuronMap) -> dict[Point, Statistic]:
        """Mean and variance over prompts of every channel."""
        return {
            Point.activations(site): statistic_for(
                site.writes, neuron_map, lambda: RunningMoments(self.positions, self.pooling)
            )
            for site in self._sites(neuron_map)
        }

    def score(self, model: Any, neuron_map: NeuronMap, seen: Seen) -> NeuronScores:
        """The chosen statistic of every neuron.

        Raises:
            DataError: if a set has fewer than two prompts with tokens at these positions.
        """
        values = {}
        for site in self._sites(neuron_map):
            point = Point.activations(site)
            values[site.name] = self._scores(site, seen["safety"][point], seen["utility"][point])
        return NeuronScores(neuron_map, values, asdict(self))

    def _sites(self, neuron_map: NeuronMap) -> list[Site]:
        return [site for site in neuron_map.sites.values() if self.attention or site.kind == "mlp"]

    def _scores(self, site: Site, unsafe: Statistic, safe: Statistic) -> FloatArray:
        for role, statistic in zip(self.sets, (unsafe, safe), strict=True):
            most = max(moments.count for moments in each(statistic))
            if most < 2:
                same = f" that reach the same expert of {site.name}" if isinstance(statistic, ByExpert) else ""
                raise DataError(
                    f"the {role} set has {most} prompts with tokens at positions={self.positions!r}{same}; expected "
                    "at least 2"
                )
        experts = list(zip(each(unsafe), each(safe), strict=True))
        compared = [index for index, pair in enumerate(experts) if min(moments.count for moments in pair) >= 2]
        d, z, difference = np.zeros((3, len(experts), site.writes.index.size // len(experts)))
        for index in compared:
            u, s = experts[index]
            difference[index] = (u.mean - s.mean).cpu()
            deviation = ((u.squares + s.squares) / (u.count + s.count - 2)).sqrt().cpu().numpy()
            # One that is constant on each set separates them perfectly if it differs, and not at all if it does not.
            d[index] = np.clip(difference[index] / np.maximum(deviation, _SINGLE.tiny), _SINGLE.min, _SINGLE.max)
        if compared:
            own = difference[compared]
            z[compared] = (own - own.mean()) / max(float(own.std()), float(_SINGLE.tiny))

        es, sas, shift = (channels.ravel()[site.writes.index].mean(axis=1) for channels in (d, z, difference))
        sas = np.where(shift > 0, sas, np.minimum(sas, 0))
        union = np.maximum(es / self.tau_es, sas / self.tau_sas)
        found: FloatArray = {"es": es, "sas": sas, "union": union}[self.statistic].astype(np.float32)
        return found
