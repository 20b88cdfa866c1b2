"""What every strategy provides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from neurofreeze.data.batches import Batch
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.scores import NeuronScores


class Strategy(Protocol):
    """A way to score neurons on one calibration set."""

    @property
    def name(self) -> str:
        """The strategy's name in STRATEGIES."""
        ...

    def score(
        self, model: Any, neuron_map: NeuronMap, batches: Iterable[Batch], progress: Callable[[], None] | None = None
    ) -> NeuronScores:
        """Scores for every neuron of the map, float32; memory must not grow with the number of batches."""
        ...
