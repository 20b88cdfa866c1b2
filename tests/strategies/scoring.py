"""Running one strategy on ready-made batches, as `select` does after the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from neurofreeze.data.batches import Batch, pad
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import NeuronScores, Strategy
from neurofreeze.strategies.base import ForwardStrategy
from neurofreeze.strategies.observing import observe
from neurofreeze.strategies.resuming import Turns

Rows = list[tuple[list[int], int]]


def conversations(count: int = 7, seed: int = 0) -> Rows:
    """(token ids, where the answer begins) of random conversations of different lengths."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(3, 64, size=length).tolist(), 2) for length in rng.integers(4, 15, size=count)]


def batched(size: int, rows: Rows | None = None) -> list[Batch]:
    return list(pad(rows or conversations(), 0, size))


def score(
    strategy: Strategy,
    model: Any,
    sets: Sequence[Batch] | Mapping[str, Sequence[Batch]],
    granularity: Any = "head",
    progress: Callable[[], None] | None = None,
) -> NeuronScores:
    given = sets if isinstance(sets, Mapping) else {"safety": sets}
    neuron_map = NeuronMap.of(model, granularity)
    if not isinstance(strategy, ForwardStrategy):
        return strategy.run(model, neuron_map, given, Turns(progress))
    seen = {name: strategy.watch(neuron_map) for name in strategy.sets}
    for name in strategy.sets:
        observe(model, given[name], [seen[name]], Turns(progress))
    return strategy.score(model, neuron_map, seen)
