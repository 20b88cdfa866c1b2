"""A uniformly random score for every neuron: what any selection must beat.

The same seed gives the same scores for the same layout on every machine and rank; weights and data play no part.

When to use it: as one more strategy in a sweep. The control for a *given* mask is `NeuronMask.random_like`, which draws
as many neurons at every site as the mask has, while the top of these scores spreads over the layers by chance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.base import Sets
from neurofreeze.strategies.options import require
from neurofreeze.strategies.resuming import Turns
from neurofreeze.strategies.scores import NeuronScores


@dataclass(frozen=True)
class Random:
    """Uniform scores between 0 and 1.

    Args:
        seed: an integer not below 0.

    Raises:
        ConfigError: for another seed.
    """

    seed: int = 0
    name: str = "random"
    sets: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        require(type(self.seed) is int and self.seed >= 0, "seed", self.seed, "an integer not below 0")

    def run(self, model: Any, neuron_map: NeuronMap, sets: Sets, turns: Turns) -> NeuronScores:
        """A score for every neuron, drawn in the order of the map."""
        # Salted, or the top of these scores would avoid exactly the neurons that NeuronMask.random draws.
        rng = np.random.default_rng([self.seed, 2])
        values = {name: rng.random(site.neurons).astype(np.float32) for name, site in neuron_map.sites.items()}
        return NeuronScores(neuron_map, values, asdict(self))
