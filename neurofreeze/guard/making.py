"""Making a gate: prompts are parted, the trigger is fitted on one part and calibrated on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from neurofreeze.config.gate import GateConfig
from neurofreeze.data.examples import Example
from neurofreeze.errors import ConfigError
from neurofreeze.guard.gate import STEPS, Gate
from neurofreeze.guard.reactions import REACTIONS
from neurofreeze.guard.triggers import LifTrigger, NeuronTrigger, ProbeTrigger, Trigger


def make_gate(
    config: GateConfig,
    model: Any,
    tokenizer: Any,
    harmful: Sequence[Example],
    benign: Sequence[Example],
    expert: Any = None,
) -> Gate:
    """The calibrated gate that the settings ask for.

    Args:
        config: of `neurofreeze gate`.
        model: to guard.
        tokenizer: its own.
        harmful: prompts, for fitting and calibration together.
        benign: the same; each set given is parted in the same proportion if they are mixed.
        expert: for triggers and reactions that need one.

    Raises:
        ConfigError: for an option that the trigger or reaction does not have.
        GuardError: for one that is out of range.
    """
    fitting, calibrating = zip(
        *(parted(found, config.fit_share, config.seed) for found in (harmful, benign)), strict=True
    )
    if config.trigger.name == "lif":  # nothing to fit
        fitting, calibrating = ([], []), (harmful, benign)
    kind = REACTIONS[config.reaction.name]
    reaction = kind(**_known(config.reaction.options, [field.name for field in fields(kind)], "reaction"))
    trigger = _trigger(config, model, tokenizer, fitting)
    gate = Gate(model, tokenizer, trigger, reaction, steps=config.steps, expert=expert)
    gate.calibrate(*calibrating, target=config.target, batch_size=config.batch_size)
    return gate


def parted(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """A random share of the examples, and the rest, both in their order."""
    chosen = np.zeros(len(examples), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(examples))[: round(share * len(examples))]] = True
    return (
        [example for example, first in zip(examples, chosen, strict=True) if first],
        [example for example, first in zip(examples, chosen, strict=True) if not first],
    )


def _trigger(config: GateConfig, model: Any, tokenizer: Any, prompts: Sequence[Sequence[Example]]) -> Trigger:
    options = config.trigger.options
    if config.trigger.name == "lif":
        return LifTrigger(**_known(options, ["tau", "keep"], "trigger"))
    shared: dict[str, Any] = {"steps": config.steps or STEPS, "batch_size": config.batch_size}
    harmful, benign = prompts
    if config.trigger.name == "probe":
        shared |= _known(options, ["layer", "kind"], "trigger")
        return ProbeTrigger.fit(model, tokenizer, harmful, benign, **shared)
    shared |= _known(options, ["count", "pool"], "trigger")
    among = None
    if config.trigger.mask is not None:
        from neurofreeze.mask import NeuronMask

        among = NeuronMask.from_pretrained(config.trigger.mask, model=model)
    return NeuronTrigger.fit(model, tokenizer, harmful, benign, among=among, **shared)


def _known(options: Mapping[str, Any], names: Sequence[str], what: str) -> dict[str, Any]:
    for name in options:
        if name not in names:
            raise ConfigError(f"{what}.options.{name} is unknown; expected one of {', '.join(names) or 'none'}")
    return dict(options)
