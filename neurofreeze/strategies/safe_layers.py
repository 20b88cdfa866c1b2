"""Whole middle layers (SPPFT, Li et al., ICLR 2025, arXiv 2408.17003): score 1 from layer `first` to `last`, else 0.

The paper finds that a few contiguous layers in the middle of an aligned model tell harmful from ordinary requests, and
fixes them in fine-tuning. It locates them model by model, by scaling their weights and watching over-refusal; which
layers they are is not computed here, hence options. `scores.above(0.5)` chooses all neurons of these layers. Their
norms and output biases, which belong to no neuron, are not among them.

When to use it: as the coarse baseline, with layers known from the paper or from a search of your own. Needs no data.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from neurofreeze.errors import ConfigError
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.base import Sets
from neurofreeze.strategies.options import require
from neurofreeze.strategies.resuming import Turns
from neurofreeze.strategies.scores import NeuronScores


@dataclass(frozen=True)
class SafeLayers:
    """All neurons of some layers.

    Args:
        first: the first of the layers, counted from 0.
        last: the last of them, included.

    Raises:
        ConfigError: if they are not integers with 0 <= first <= last.
    """

    first: int
    last: int
    name: str = "safe_layers"
    sets: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for option in ("first", "last"):
            require(type(getattr(self, option)) is int, option, getattr(self, option), "a layer, counted from 0")
        require(self.first >= 0, "first", self.first, "a layer, counted from 0")
        require(self.last >= self.first, "last", self.last, f"a layer not before first={self.first}")

    def require_fit(self, neuron_map: NeuronMap) -> None:
        """Raise ConfigError if the model has no layer `last`."""
        layers = 1 + max(site.layer for site in neuron_map.sites.values())
        if self.last >= layers:
            raise ConfigError(
                f"last is {self.last}; expected at most {layers - 1}, since the model has {layers} layers"
            )

    def run(self, model: Any, neuron_map: NeuronMap, sets: Sets, turns: Turns) -> NeuronScores:
        """1 or 0 for every neuron.

        Raises:
            ConfigError: if the model has no layer `last`.
        """
        self.require_fit(neuron_map)
        values = {
            name: np.full(site.neurons, self.first <= site.layer <= self.last, dtype=np.float32)
            for name, site in neuron_map.sites.items()
        }
        return NeuronScores(neuron_map, values, asdict(self))
