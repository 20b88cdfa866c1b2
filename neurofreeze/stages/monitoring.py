"""What an arm's training logs beside its losses: checks of the frozen elements, and what the monitor measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from neurofreeze.models.load import load_config, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages.context import Run

if TYPE_CHECKING:
    from transformers import TrainerCallback


def rows(run: Run, stage: str, arm: str, before: int = 0) -> Callable[[dict[str, Any]], None]:
    """What logs the rows of a stage of an arm, of one more attempt at training it.

    `before` is how many steps earlier rounds have taken, if it is trained in rounds.
    """
    log = run.folder.attempt(stage, arm)
    return lambda row: log({**row, "global_step": row["global_step"] + before})


def monitors(run: Run, arm: str, before: int = 0) -> list[TrainerCallback]:
    """The monitor of an arm's training, if the settings ask for one; `before` as for `rows`."""
    # Not before they are needed: they import the trainer.
    from neurofreeze.training.monitoring import MonitorCallback
    from neurofreeze.training.probes import Probes
    from neurofreeze.training.updates import UpdateShares

    c = run.config.monitor
    if not c.every:
        return []
    tokenizer = load_tokenizer(run.start)
    probes = Probes(run.data.safety[: c.prompts], tokenizer, run.config.evaluation, refusals=c.refusals)
    neuron_map = NeuronMap.of(load_config(run.start), run.config.granularity)  # type: ignore[arg-type]
    updates = UpdateShares(run.start, neuron_map) if c.updates else None
    drift = None if c.reference is None else _drift(run, c.reference, tokenizer)
    return [MonitorCallback(probes, c.every, rows(run, "monitor", arm, before), updates, drift)]


def _drift(run: Run, folder: str, tokenizer: Any) -> Any:
    from neurofreeze.guard.monitor.drift import Drift
    from neurofreeze.guard.monitor.reference import Reference

    # That of the arm's start, whose weights a resumed training no longer has: the layout is what can be checked.
    reference = Reference.from_pretrained(folder, model=load_config(run.start), other_weights=True)
    return Drift(reference, run.data.utility[: run.config.monitor.prompts], tokenizer)
