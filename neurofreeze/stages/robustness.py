"""Robustness: what is left of a model's refusals without its own safety neurons, and without as many random ones.

Neurons are pruned by setting their activations to zero; weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neurofreeze.console import say, stage
from neurofreeze.evaluation.ablation import ablated
from neurofreeze.evaluation.measure import EvaluationData, Outcomes, measure
from neurofreeze.evaluation.statistics import Mean, Rate
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.report.content import WHOLE, Robustness
from neurofreeze.stages import evaluate, judge
from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import settings_digest
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
        run.folder.run("prune-start", _settings(run), lambda: _prune(run, run.start, mask, name, whole))


def prune(this: Round, whole: Outcomes | None = None) -> None:
    """Prune what a round has left; `whole`: what evaluation found of it already."""
    mask = this.safety_neurons()
    settings = {**this.settings(), **_settings(this.run)}
    work = lambda: _prune(this.run, this.checkpoint, mask, this.name, whole)  # noqa: E731
    this.run.folder.run(f"prune-{this.name}", settings, work)


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


def _prune(run: Run, folder: Path, mask: NeuronMask, name: str, whole: Outcomes | None) -> dict[str, Any]:
    c = run.config
    data = EvaluationData(run.data.harmful, run.data.lookalikes, [], run.data.general)
    masks = dict(zip(STATES, (None, mask, NeuronMask.random_like(mask, c.seed)), strict=True))
    found = {}
    if whole is not None:
        del masks[WHOLE]
        found[WHOLE] = asdict(whole)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    with stage(f"prune {name}", len(masks) * data.steps(c.evaluation)) as bar:
        for state, pruned in masks.items():
            with nullcontext() if pruned is None else ablated(model, pruned):
                outcomes = measure(model, tokenizer, data, c.evaluation, c.training.max_length, bar.advance)
            say(f"prune {name}, without {'nothing' if pruned is None else state}: refuses {Rate.of(outcomes.refused)}")
            found[state] = asdict(outcomes)
    return {"neurons": mask.count, "states": found}


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
