"""Weighted input feature variance (WIFV), the score of SSAH (arXiv 2410.10862, section 4), taken from FLAP.

I_j = Var_n(X_nj) * ||W_:,j||_2^2, where X_nj is the input of a block's second matrix (down_proj or o_proj) at token n
and channel j, and W_:,j that matrix's column j. A channel that varies little can be replaced by its mean; the column's
norm says how much of the variation reaches the residual stream. The tokens of a neuron of an expert are those that
reached this expert, and X is before their routing weights; where fewer than two did, the variance is 0.

When to use it: forward passes only, no gradients, no generation; the cheapest score, and the one whose difference
between a safety set and a utility set defines SSAH's groups.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.base import Seen
from neurofreeze.strategies.by_expert import stacked, statistic_for
from neurofreeze.strategies.observing import Point, Statistic
from neurofreeze.strategies.options import require_switch
from neurofreeze.strategies.scores import NeuronScores
from neurofreeze.strategies.statistics import RunningMoments
from neurofreeze.strategies.weights import matrices, parameters


@dataclass(frozen=True)
class WIFV:
    """WIFV scores; a head's is the mean over its channels, as in FLAP.

    Args:
        standardize: subtract the site's mean score and divide by its standard deviation before neurons of different
            layers are compared, as FLAP does. Whether SSAH does is not stated; without it the last layers, whose
            activations are largest, crowd out the rest.

    Raises:
        ConfigError: if it is neither true nor false.
    """

    standardize: bool = True
    name: str = "wifv"
    sets: ClassVar[tuple[str, ...]] = ("safety",)
    reads_weights: ClassVar[bool] = True  # which must not be quantized

    def __post_init__(self) -> None:
        require_switch("standardize", self.standardize)

    def watch(self, neuron_map: NeuronMap) -> dict[Point, Statistic]:
        """The variance of every channel."""
        sites = neuron_map.sites.values()
        return {Point.activations(site): statistic_for(site.writes, neuron_map, RunningMoments) for site in sites}

    def score(self, model: Any, neuron_map: NeuronMap, seen: Seen) -> NeuronScores:
        """I_j for every neuron j."""
        weights, values = parameters(model), {}
        for name, site in neuron_map.sites.items():
            columns = matrices(weights[site.writes.parameter], site.writes.axis)
            norms = torch.stack([lines.square().sum(1) for lines in columns]).cpu()
            variances = stacked(seen["safety"][Point.activations(site)], RunningMoments.variance)
            channels = (variances * norms).flatten().numpy()
            if self.standardize:
                channels = (channels - channels.mean()) / max(float(channels.std()), np.finfo(np.float64).tiny)
            values[name] = channels[site.writes.index].mean(axis=1).astype(np.float32)
        return NeuronScores(neuron_map, values, asdict(self))
