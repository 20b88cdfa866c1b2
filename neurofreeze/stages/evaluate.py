"""Evaluate: measure one checkpoint's refusals, over-refusals, refusal margin and held-out losses."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from neurofreeze.console import say, stage
from neurofreeze.evaluation.measure import EvaluationData, Outcomes, measure
from neurofreeze.evaluation.statistics import Rate
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.stages import hardening, judge
from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import settings_digest

START = "start"


def run(run: Run, name: str) -> None:
    """Evaluate the start ("start") or an arm."""
    c = run.config
    if name != START:
        run.folder.required(f"train-{name}", "train")
    of = run.align_settings() if name == START else run.train_settings(name)
    settings = {
        "model": settings_digest(of),
        "aligned": run.start == run.aligned,
        "evaluation": {key: value for key, value in asdict(c.evaluation).items() if key not in judge.SETTINGS},
        "max_length": c.training.max_length,
        "data": run.data.digests("harmful", "lookalikes", "holdout", "general"),
    }
    run.folder.run(f"evaluate-{name}", settings, lambda: _evaluate(run, name))
    if judge.asked_for(c.evaluation):
        judge.run(run, name, run.start if name == START else run.arm(name), settings)
    if c.hardens:
        hardening.evaluate(run, name)


def outcomes(run: Run, name: str) -> Outcomes:
    """What evaluation of a checkpoint found, prompt by prompt."""
    return Outcomes(**run.folder.required(f"evaluate-{name}", "evaluate"))


def _evaluate(run: Run, name: str) -> dict[str, Any]:
    folder = run.start if name == START else run.arm(name)
    data = EvaluationData(run.data.harmful, run.data.lookalikes, run.data.holdout, run.data.general)
    config = run.config.evaluation
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    with stage(f"evaluate {name}", data.steps(config)) as bar:
        found = measure(model, tokenizer, data, config, run.config.training.max_length, bar.advance)
    say(f"evaluate {name}: refuses {Rate.of(found.refused)} harmful, {Rate.of(found.over_refused)} look-alikes")
    return asdict(found)
