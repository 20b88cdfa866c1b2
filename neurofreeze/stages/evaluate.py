"""Evaluate: measure one checkpoint's refusals, over-refusals, refusal margin and held-out losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from neurofreeze.checkpoints import stamps
from neurofreeze.console import say, stage
from neurofreeze.distributed import first_rank
from neurofreeze.evaluation.measure import EvaluationData, Outcomes, Part, gathered, plan, values
from neurofreeze.evaluation.sharing import shared
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
        first_rank(lambda: run.folder.required(f"train-{name}", "train", run.train_settings(name)))
    settings = _settings(run, name)
    run.folder.run(f"evaluate-{name}", settings, lambda: _evaluate(run, name, settings), together=True)
    if judge.asked_for(c.evaluation):
        judge.run(run, name, run.start if name == START else run.arm(name), settings)
    if c.hardens:
        hardening.evaluate(run, name)


def outcomes(run: Run, name: str) -> Outcomes:
    """What evaluation of a checkpoint found, prompt by prompt."""
    return Outcomes(**run.folder.required(f"evaluate-{name}", "evaluate", _settings(run, name)))


def _settings(run: Run, name: str) -> dict[str, Any]:
    """What the outcomes depend on."""
    c = run.config
    of = run.align_settings() if name == START else run.train_settings(name)
    return {
        "model": settings_digest(of),
        "aligned": run.start == run.aligned,
        "evaluation": {key: value for key, value in asdict(c.evaluation).items() if key not in judge.SETTINGS},
        "max_length": c.training.max_length,
        "data": run.data.digests("harmful", "lookalikes", "holdout", "general"),
    }


def _evaluate(run: Run, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    folder = run.start if name == START else run.arm(name)
    data = EvaluationData(run.data.harmful, run.data.lookalikes, run.data.holdout, run.data.general)
    config, max_length = run.config.evaluation, run.config.training.max_length

    def work(parts: list[Part]) -> Iterator[list[Any]]:
        model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
        with stage(f"evaluate {name}", len(parts)) as bar:
            for part in parts:
                yield values(model, tokenizer, data, part, config, max_length)
                bar.advance()

    parts = shared(
        f"evaluate {name}",
        run.folder.unfinished(f"evaluate-{name}"),
        [settings, stamps(folder)],
        lambda: plan(load_tokenizer(folder), data, config, max_length),
        work,
    )
    found = gathered(data, parts)
    say(f"evaluate {name}: refuses {Rate.of(found.refused)} harmful, {Rate.of(found.over_refused)} look-alikes")
    return asdict(found)
