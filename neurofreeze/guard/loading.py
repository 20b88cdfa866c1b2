"""The chain of gates and filters that the settings ask for."""

from __future__ import annotations

from typing import Any

from neurofreeze.config.guard import FilterConfig, GuardConfig
from neurofreeze.errors import JudgeError
from neurofreeze.evaluation.judges.loading import load_judge
from neurofreeze.guard.chain import Chain
from neurofreeze.guard.events import OnEvent
from neurofreeze.guard.filters import Filter
from neurofreeze.guard.gate import Gate
from neurofreeze.guard.reactions.refuse import TEXT


def load_chain(config: GuardConfig, model: Any, tokenizer: Any, on_event: OnEvent | None = None) -> Chain:
    """The guard of `config` around a model; without gates and filters its generate is the model's own.

    Raises:
        GuardError: if a gate is missing, malformed or for another model.
        JudgeError: if a filter's judge cannot judge.
        ModelError: if an expert's or a judge's model cannot be found or loaded.
    """
    expert = load_expert(config.expert) if config.expert is not None else None
    gates = [
        Gate.from_pretrained(
            folder, model=model, tokenizer=tokenizer, expert=expert, other_weights=config.other_weights
        )
        for folder in config.gates
    ]
    return Chain(model, tokenizer, gates, [_filter(*found) for found in config.filters.items()], on_event)


def load_expert(name: str) -> Any:
    """The expert of this name: a folder, a hub id or a short name.

    Raises:
        ModelError: if it cannot be found or loaded.
    """
    from neurofreeze.models.load import load_model
    from neurofreeze.models.resolve import resolve

    return load_model(resolve(name, None).folder).eval()


def _filter(name: str, config: FilterConfig) -> Filter:
    text = TEXT if config.text is None else config.text
    try:
        judge = load_judge(config.judge, "strict-opening")
    except JudgeError as error:
        raise JudgeError(f"guard.filters.{name}: {error}") from error
    # By its name in the settings: events go to callers of a server, whom its paths and addresses do not concern.
    return Filter(judge, config.action, text, config.undecided, name)  # type: ignore[arg-type]
