"""What only libraries, strategies, folders or the chat template can tell to be wrong, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurofreeze.config.checks import check
from neurofreeze.config.schema import Config, TrainingConfig
from neurofreeze.data import Example
from neurofreeze.errors import DataError
from neurofreeze.stages.context import Run


def require(run: Run) -> None:
    """Look at all that settings name: minutes of training come before it is needed.

    Raises:
        ConfigError: if it is not known.
        DataError: if the model's chat template takes no such conversations as the data has.
    """
    c = run.config
    _require_training("training", c.training)
    _require_training("alignment.training", c.alignment.training)
    _require_reference(c)
    _require_conversations(run)
    if run.folder.result("select") is None:  # afterwards a strategy's own folders may be gone
        _require_strategy(run)


def _require_training(key: str, training: TrainingConfig) -> None:
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    for name, known in (("optimizer", OptimizerNames), ("scheduler", SchedulerType)):
        found, names = getattr(training, name), [member.value for member in known]
        check(found in names, f"{key}.{name}", found, f"one of {', '.join(names)}")


def _require_reference(config: Config) -> None:
    from neurofreeze.guard.monitor.reference_file import CONFIG

    found = config.monitor.reference
    made = found is None or not config.monitor.every or (Path(found) / CONFIG).is_file()
    check(made, "monitor.reference", found, f"a folder with {CONFIG}, which `neurofreeze monitor` makes")


def _require_conversations(run: Run) -> None:
    from neurofreeze.models.load import load_tokenizer

    tokenizer = load_tokenizer(run.source.folder)
    for role, examples in run.data.roles().items():
        _require_taken(tokenizer, f"data.{role}", examples)


def _require_taken(tokenizer: Any, role: str, examples: Sequence[Example]) -> None:
    from neurofreeze.data.batches import answer_ids, prompt_ids

    # One of each kind: templates mind who speaks after whom.
    kinds = {(*(who for who, _ in example.turns), example.response is None): example for example in examples}
    try:
        for example in kinds.values():
            (prompt_ids if example.response is None else answer_ids)(tokenizer, example)
    except DataError as error:
        raise DataError(f"{role}: {error}; change these conversations, or take another model") from error


def _require_strategy(run: Run) -> None:
    from neurofreeze.models.load import load_config
    from neurofreeze.neurons import NeuronMap
    from neurofreeze.strategies import make
    from neurofreeze.strategies.base import Fitted

    method, strategy = run.config.method, run.config.strategy
    own = {"nest": ("probe", method.nest.probe), "safeneuron": ("contrast", method.safeneuron.contrast)}
    found = make(*own.get(method.name, (strategy.name, strategy.options)))
    if isinstance(found, Fitted):
        found.require_fit(NeuronMap.of(load_config(run.source.folder), run.config.granularity))  # type: ignore[arg-type]
