"""Robustness: what is left of a model's refusals without its own safety neurons, and without as many random ones.

Neurons are pruned by setting their activations to zero; weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neurofreeze.console import say
from neurofreeze.evaluation.measure import EvaluationData, Outcomes
from neurofreeze.evaluation.statistics import Mean, Rate
from neurofreeze.mask import NeuronMask
from neurofreeze.report.content import WHOLE, Robustness
from neurofreeze.stages import evaluate, judge
from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import settings_digest
from neurofreeze.stages.pruning import outcomes_without
from neurofreeze.stages.rounds import ARM, Round

STATES = (WHOLE, "safety neurons", "random, same number")


def run(run: Run, name: str) -> None:
    """Prune the start or the last round of an arm, which has been evaluated whole."""
    whole = evaluate.outcomes(run, name)
    if name != evaluate.START:
        prune(Round(run, name, run.config.method.safeneuron.rounds - 1), whole)
    elif run.folder.result("select") is None:
        say("prune start: no neurons are selected yet, left out")
    else:
        mask = NeuronMask.from_pretrained(run.mask(ARM))
        settings = _settings(run)
        work = lambda: _prune(run, name, settings, run.start, mask, whole)  # noqa: E731
        run.folder.run(f"prune-{name}", settings, work, together=True)


def prune(this: Round, whole: Outcomes | None = None) -> None:
    """Prune what a round has left; `whole`: what evaluation found of it already."""
    mask = this.safety_neurons()
    settings = {**this.settings(), **_settings(this.run)}
    work = lambda: _prune(this.run, this.name, settings, this.checkpoint, mask, whole)  # noqa: E731
    this.run.folder.run(f"prune-{this.name}", settings, work, together=True)


def gathered(run: Run) -> list[Robustness]:
    """What was measured of the start and of every round of every arm that was pruned, with these settings."""
    found = list(_rows(run, "prune-start", "before training", _settings(run)))
    for arm in run.config.arms:
        for number in range(run.config.method.safeneuron.rounds):
            this = Round(run, arm, number)
            settings = {**this.settings(), **_settings(run)}
            found += _rows(run, f"prune-{this.name}", f"{arm}, T{number}", settings)
    return found


def _settings(run: Run) -> dict[str, Any]:
    evaluation = asdict(run.config.evaluation)
    return {
        "select": settings_digest(run.select_settings()),
        "evaluation": {key: value for key, value in evaluation.items() if key not in judge.SETTINGS},
        "max_length": run.config.training.max_length,
        "seed": run.config.seed,
        "data": run.data.digests("harmful", "lookalikes", "general"),
    }


def _prune(
    run: Run, name: str, settings: dict[str, Any], folder: Path, mask: NeuronMask, whole: Outcomes | None
) -> dict[str, Any]:
    data = EvaluationData(run.data.harmful, run.data.lookalikes, [], run.data.general)
    masks = dict(zip(STATES, (None, mask, NeuronMask.random_like(mask, run.config.seed)), strict=True))
    found: dict[str, Outcomes] = {}
    if whole is not None:
        del masks[WHOLE]
        found[WHOLE] = whole
    found |= outcomes_without(run, f"prune-{name}", settings, folder, masks, data)
    for state in masks:
        without = "nothing" if state == WHOLE else state
        say(f"prune {name}, without {without}: refuses {Rate.of(found[state].refused)}")
    return {"neurons": mask.count, "states": {state: asdict(outcomes) for state, outcomes in found.items()}}


def _rows(run: Run, stage: str, label: str, settings: dict[str, Any]) -> Iterator[Robustness]:
    result = run.folder.result(stage)
    if result is None or run.folder.settings(stage) != settings:
        return
    for state, found in result["states"].items():
        outcomes = Outcomes(**found)
        yield Robustness(
            label=label,
            pruned=state,
            neurons=0 if state == WHOLE else result["neurons"],
            refusals=Rate.of(outcomes.refused),
            over_refusals=Rate.of(outcomes.over_refused),
            margin=Mean.of(outcomes.margins),
            general_loss=Mean.of(outcomes.general_losses),
            degenerate=Rate.of(outcomes.degenerate),
        )
