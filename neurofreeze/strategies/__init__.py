"""Strategies: how much each neuron matters. One file a score; `select` runs one by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from neurofreeze.data.batches import batches
from neurofreeze.data.examples import Example
from neurofreeze.errors import ConfigError
from neurofreeze.neurons import Granularity, NeuronMap
from neurofreeze.strategies.base import Strategy
from neurofreeze.strategies.scores import NeuronScores
from neurofreeze.strategies.wifv import WIFV

__all__ = ["STRATEGIES", "WIFV", "NeuronScores", "Strategy", "select"]

STRATEGIES: dict[str, Callable[..., Strategy]] = {"wifv": WIFV}


def select(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    strategy: str | Strategy = "wifv",
    *,
    granularity: Granularity = "head",
    batch_size: int = 8,
    max_length: int | None = 512,
    progress: Callable[[], None] | None = None,
    **options: Any,
) -> NeuronScores:
    """Score every neuron of `model` on a calibration set.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer, with a chat template.
        examples: prompts with answers.
        strategy: a name in STRATEGIES, with its options as further keywords, or a strategy.
        granularity: what an attention neuron is, "head" or "channel".
        batch_size: conversations a batch.
        max_length: tokens kept of each conversation.
        progress: called after each batch.
        options: the strategy's own options.

    Raises:
        ConfigError: for an unknown strategy or option.
    """
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise ConfigError(f"no strategy {strategy!r}; expected one of {', '.join(STRATEGIES)}")
        try:
            strategy = STRATEGIES[strategy](**options)
        except TypeError as error:
            raise ConfigError(f"strategy {strategy!r}: {error}") from error
    return strategy.score(
        model, NeuronMap.of(model, granularity), batches(tokenizer, examples, batch_size, max_length), progress
    )
