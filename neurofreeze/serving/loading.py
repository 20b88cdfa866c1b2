"""The model, the guard and the monitor that the settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neurofreeze.config.serve import ServedConfig
from neurofreeze.console import quiet_transformers
from neurofreeze.guard.chain import Chain
from neurofreeze.guard.loading import load_chain
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.models.resolve import resolve

if TYPE_CHECKING:
    from neurofreeze.guard.monitor import Monitor


def load_guarded(config: ServedConfig) -> tuple[Chain, Monitor | None]:
    """A model with its gates and filters, and the monitor of its prompts.

    Raises:
        ModelError: if a model cannot be found or loaded.
        GuardError: if a gate is for another model.
        JudgeError: if a filter's judge cannot judge.
        DataError, MaskError: if the monitor's reference is malformed, or for another model or chat template.
    """
    quiet_transformers()
    folder = resolve(config.model, config.revision).folder
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    return load_chain(config.guard, model, tokenizer), _monitor(config, model, tokenizer)


def guarded_by(chain: Chain, monitor: Monitor | None) -> str:
    """What guards a model, in words."""
    gates = [f"gate {gate.trigger.name}, {gate.reaction.name}" for gate in chain.gates]
    filters = [f"filter {part.label}, {part.action}" for part in chain.filters]
    watched = [] if monitor is None else [f"monitor of {monitor.reference.neurons} neurons"]
    return "; ".join([*gates, *filters, *watched]) or "nothing: the model answers as it is"


def _monitor(config: ServedConfig, model: Any, tokenizer: Any) -> Monitor | None:
    if config.reference is None:
        return None
    from neurofreeze.guard.monitor import Monitor, Reference

    reference = Reference.from_pretrained(config.reference, model=model, other_weights=config.guard.other_weights)
    reference.require_template(tokenizer)
    return Monitor(reference, config.detection)
