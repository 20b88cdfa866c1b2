"""Strategies: how much each neuron matters. One file a score; `select` runs them by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neurofreeze.data.batches import batches, template_record
from neurofreeze.data.examples import Example
from neurofreeze.errors import ConfigError
from neurofreeze.neurons import Granularity, NeuronMap
from neurofreeze.strategies.base import ForwardStrategy, OwnBatches, OwnRun, Sets, Strategy
from neurofreeze.strategies.change import Change
from neurofreeze.strategies.contrast import Contrast
from neurofreeze.strategies.margin import Margin
from neurofreeze.strategies.observing import observe
from neurofreeze.strategies.probe import Probe
from neurofreeze.strategies.random import Random
from neurofreeze.strategies.resuming import Kept, Turns, dependencies
from neurofreeze.strategies.safe_layers import SafeLayers
from neurofreeze.strategies.scores import NeuronScores
from neurofreeze.strategies.sn_tune import SNTune
from neurofreeze.strategies.snip import Snip
from neurofreeze.strategies.wanda import Wanda
from neurofreeze.strategies.weights import require_full_precision
from neurofreeze.strategies.wifv import WIFV

__all__ = ["STRATEGIES", "WIFV", "ForwardStrategy", "NeuronScores", "OwnRun", "Strategy", "select", "select_all"]

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "change": Change,
    "contrast": Contrast,
    "margin": Margin,
    "probe": Probe,
    "random": Random,
    "safe_layers": SafeLayers,
    "sn_tune": SNTune,
    "snip": Snip,
    "wanda": Wanda,
    "wifv": WIFV,
}

_SHARED_OPTIONS = ("granularity", "batch_size", "max_length", "progress", "resume", "keep")
Examples = Sequence[Example] | Mapping[str, Sequence[Example]]


def select(
    model: Any, tokenizer: Any, examples: Examples, strategy: str | Strategy = "wifv", **options: Any
) -> NeuronScores:
    """Score every neuron of `model` by one strategy.

    Args:
        model: a transformers causal language model, also under DDP, FSDP2 or ZeRO-3, where every rank must call this.
        tokenizer: its tokenizer, with a chat template.
        examples: prompts with answers: one calibration set, or "safety" and "utility" for a strategy that contrasts
            the two.
        strategy: a name in STRATEGIES, or a strategy.
        options: those of `select_all`, and for a strategy given by name its own.

    Raises:
        ConfigError: for an unknown strategy, option or missing calibration set.
        DataError: if a calibration set is empty.
    """
    shared = {name: options.pop(name) for name in _SHARED_OPTIONS if name in options}
    chosen = make(strategy, options) if isinstance(strategy, str) else strategy
    return select_all(model, tokenizer, examples, [chosen], **shared)[0]


def select_all(
    model: Any,
    tokenizer: Any,
    examples: Examples,
    strategies: Sequence[Strategy],
    *,
    granularity: Granularity = "head",
    batch_size: int = 8,
    max_length: int | None = 512,
    progress: Callable[[], None] | None = None,
    resume: str | Path | None = None,
    keep: bool = False,
) -> list[NeuronScores]:
    """Score every neuron by several strategies; those that need forward passes only share one over each set.

    Args:
        model: as for `select`.
        tokenizer: as for `select`.
        examples: as for `select`.
        strategies: the strategies.
        granularity: what an attention neuron is, "head" or "channel".
        batch_size: conversations a batch.
        max_length: tokens kept of each conversation.
        progress: called after each batch.
        resume: a folder where what was gathered is kept until the scores are there; if it holds what the same selection
            has gathered before it was interrupted, that goes on from there, on as many ranks. What depends on anything
            else (model, data, options, library version) is not used, with a warning.
        keep: leave the folder as it is when the scores are there, for a caller who has more to do before it removes it.

    Raises:
        ConfigError: if a strategy reads weights that are quantized.
        DataError: if a calibration set is empty, or the tokenizer has no chat template.
    """
    neuron_map = NeuronMap.of(model, granularity)
    for strategy in strategies:
        if getattr(strategy, "reads_weights", False):
            require_full_precision(model, neuron_map, strategy.name)
    given = examples if isinstance(examples, Mapping) else {"safety": examples}
    sets: dict[str, Any] = {
        name: list(batches(tokenizer, given[name], batch_size, max_length)) for name in _needed(strategies, given)
    }
    read: list[Sets] = [
        {name: strategy.batches(tokenizer, given[name], batch_size, max_length) for name in strategy.sets}
        if isinstance(strategy, OwnBatches)
        else sets
        for strategy in strategies
    ]
    kept: Kept | None = None
    if resume is not None:
        options = {"batch_size": batch_size, "max_length": max_length}
        own = [found for strategy, found in zip(strategies, read, strict=True) if isinstance(strategy, OwnBatches)]
        kept = Kept(Path(resume), dependencies(model, strategies, neuron_map.digest, [sets, *own], **options))
    watching = [strategy for strategy in strategies if isinstance(strategy, ForwardStrategy)]
    seen = _watch(model, neuron_map, watching, sets, lambda name: Turns(progress, kept, name))
    scores = [
        strategy.score(model, neuron_map, seen[watching.index(strategy)])
        if isinstance(strategy, ForwardStrategy)
        else strategy.run(model, neuron_map, own_sets, Turns(progress, kept, f"{strategy.name} {number}"))
        for number, (strategy, own_sets) in enumerate(zip(strategies, read, strict=True))
    ]
    if kept is not None and not keep:
        kept.remove()
    return [
        replace(found, strategy={**found.strategy, "chat_template": template_record(tokenizer)})
        if strategy.sets
        else found
        for strategy, found in zip(strategies, scores, strict=True)
    ]


def make(name: str, options: Mapping[str, Any]) -> Strategy:
    """The strategy of that name with these options.

    Raises:
        ConfigError: for an unknown name or option.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"no strategy {name!r}; expected one of {', '.join(STRATEGIES)}")
    known = [option for option in inspect.signature(STRATEGIES[name]).parameters if option != "name"]
    for option in options:
        if option not in known:
            raise ConfigError(f"strategy {name!r} has no option {option!r}; expected one of {', '.join(known)}")
    try:
        return STRATEGIES[name](**options)
    except TypeError as error:
        raise ConfigError(f"strategy {name!r}: {error}") from error


def _needed(strategies: Sequence[Strategy], given: Mapping[str, Any]) -> list[str]:
    needed = list(dict.fromkeys(name for strategy in strategies for name in strategy.sets))
    for strategy in strategies:
        for name in strategy.sets:
            if name not in given:
                raise ConfigError(
                    f"strategy {strategy.name!r} contrasts the sets {', '.join(strategy.sets)}, but {name!r} is not "
                    'given; pass {"safety": [...], "utility": [...]}'
                )
    return needed


def _watch(
    model: Any,
    neuron_map: NeuronMap,
    strategies: Sequence[ForwardStrategy],
    sets: Sets,
    turns: Callable[[str], Turns],
) -> list[dict[str, dict[Any, Any]]]:
    seen: list[dict[str, dict[Any, Any]]] = [{} for _ in strategies]
    for name in sets:
        watched = []
        for strategy, own in zip(strategies, seen, strict=True):
            if name in strategy.sets:
                own[name] = strategy.watch(neuron_map)
                watched.append(own[name])
        if watched:
            observe(model, sets[name], watched, turns(name))
    return seen
