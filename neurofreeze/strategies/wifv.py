"""Weighted input feature variance (WIFV), the score of SSAH (arXiv 2410.10862, section 4), taken from FLAP.

I_j = Var_n(X_nj) * ||W_:,j||_2^2, where X_nj is the input of a block's second matrix (down_proj or o_proj) at token n
and channel j, and W_:,j that matrix's column j. A channel that varies little can be replaced by its mean; the column's
norm says how much of the variation reaches the residual stream.

When to use it: forward passes only, no gradients, no generation; the cheapest score, and the one whose difference
between a safety set and a utility set defines SSAH's groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from neurofreeze.data.batches import Batch
from neurofreeze.neurons import NeuronMap, Site, canonical_name
from neurofreeze.strategies.activations import watch_inputs
from neurofreeze.strategies.scores import NeuronScores


@dataclass(frozen=True)
class WIFV:
    """WIFV scores.

    Args:
        standardize: subtract the site's mean score and divide by its standard deviation before neurons of different
            layers are compared, as FLAP does. Whether SSAH does is not stated; without it the last layers, whose
            activations are largest, crowd out the rest.
    """

    standardize: bool = True
    name: str = "wifv"

    def score(
        self, model: Any, neuron_map: NeuronMap, batches: Iterable[Batch], progress: Callable[[], None] | None = None
    ) -> NeuronScores:
        """One forward pass over the batches; a head's score is the mean over its channels, as in FLAP."""
        variances: dict[str, RunningVariance] = {}

        def update(site: Site, tokens: torch.Tensor) -> None:
            variances.setdefault(site.name, RunningVariance()).update(tokens)

        watch_inputs(model, neuron_map, batches, update, progress)
        weights = {canonical_name(name): p.detach() for name, p in model.named_parameters()}
        values = {}
        for name, site in neuron_map.sites.items():
            along = 1 - site.writes.axis
            norm = weights[site.writes.parameter].double().square().sum(along).cpu()
            channels = (variances[name].variance().cpu() * norm).numpy()
            if self.standardize:
                channels = (channels - channels.mean()) / max(float(channels.std()), np.finfo(np.float64).tiny)
            values[name] = channels[site.writes.index].mean(axis=1).astype(np.float32)
        return NeuronScores(neuron_map, values, asdict(self))


class RunningVariance:
    """Sample variance per channel over a stream of tokens, in float64 and constant memory.

    Welford's recurrence in the form that merges whole batches (Chan, Golub, LeVeque 1979).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0  # sum of squared deviations from the mean

    def update(self, tokens: torch.Tensor) -> None:
        """Add tokens, float [tokens, channels]."""
        count = len(tokens)
        if count == 0:
            return
        variance, mean = torch.var_mean(tokens.double(), dim=0, correction=0)
        delta = mean - self.mean
        total = self.count + count
        self.squares = self.squares + variance * count + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def variance(self) -> torch.Tensor:
        """Float64 [channels]; zero where fewer than two tokens were seen."""
        return torch.as_tensor(self.squares) / max(self.count - 1, 1)
