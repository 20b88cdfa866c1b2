"""What every strategy provides: either what it watches in forward passes that all share, or a run of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from neurofreeze.data.batches import Batch
from neurofreeze.data.examples import Example
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.observing import Point, Statistic
from neurofreeze.strategies.resuming import Turns
from neurofreeze.strategies.scores import NeuronScores

Sets = Mapping[str, Sequence[Batch]]
Seen = Mapping[str, Mapping[Point, Any]]


@runtime_checkable
class ForwardStrategy(Protocol):
    """Scores neurons by what is seen in forward passes; strategies that are asked for together share one pass."""

    @property
    def name(self) -> str:
        """The strategy's name in STRATEGIES."""
        ...

    @property
    def sets(self) -> tuple[str, ...]:
        """The calibration sets it reads, "safety" first."""
        ...

    def watch(self, neuron_map: NeuronMap) -> dict[Point, Statistic]:
        """New, empty statistics for one calibration set, by where in the model they are gathered."""
        ...

    def score(self, model: Any, neuron_map: NeuronMap, seen: Seen) -> NeuronScores:
        """Scores for every neuron from the statistics of each set."""
        ...


@runtime_checkable
class OwnRun(Protocol):
    """Scores neurons by passes of its own: with gradients, through a second model, or with none at all."""

    @property
    def name(self) -> str:
        """The strategy's name in STRATEGIES."""
        ...

    @property
    def sets(self) -> tuple[str, ...]:
        """The calibration sets it reads, "safety" first; () if it needs no data."""
        ...

    def run(self, model: Any, neuron_map: NeuronMap, sets: Sets, turns: Turns) -> NeuronScores:
        """Scores for every neuron, taking its batches through `turns`; memory must not grow with their number."""
        ...


@runtime_checkable
class OwnBatches(OwnRun, Protocol):
    """Reads other token ids than those of whole conversations, say prompts with openings of its own."""

    def batches(
        self, tokenizer: Any, examples: Sequence[Example], batch_size: int, max_length: int | None
    ) -> Sequence[Batch]:
        """What `run` gets of each calibration set."""
        ...


@runtime_checkable
class Fitted(Protocol):
    """Has options that go with some models only, which the model's config tells without its weights."""

    def require_fit(self, neuron_map: NeuronMap) -> None:
        """Raise ConfigError unless the options go with a model of these neurons."""
        ...


Strategy = ForwardStrategy | OwnRun
