"""Report: gather what the stages left into one Content and write report.html."""

from __future__ import annotations

import platform
import shlex
from datetime import datetime, timezone
from itertools import chain, combinations
from typing import Any

import numpy as np

from neurofreeze._version import __version__
from neurofreeze.config.schema import HARDENING, UNFROZEN_ARMS
from neurofreeze.data import digest
from neurofreeze.evaluation.judges.base import rates
from neurofreeze.evaluation.measure import Outcomes
from neurofreeze.evaluation.phrases import phrase_list
from neurofreeze.evaluation.statistics import Mean, PairedTest, Rate
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config
from neurofreeze.neurons import NeuronMap
from neurofreeze.report.content import Arm, Comparison, Content, DataSource, Judged, Measurements, Pruning, Site
from neurofreeze.report.html import write_report
from neurofreeze.stages import evaluate, group_pruning, judge, migration, robustness, validate, verify
from neurofreeze.stages.context import Run
from neurofreeze.stages.datasets import holdout_source
from neurofreeze.stages.select import GROUPS_FILE, searched
from neurofreeze.summary import FreezeSummary
from neurofreeze.tracking.redaction import redact, redact_yaml

FILE = "report.html"
_NO_GROUPS = np.empty(0, dtype=np.uint8)  # methods other than SSAH
LABELS = {
    "none": "no freezing",
    "random": "random, same number",
    "safety": "safety neurons",
    "nest": "NeST",
    "full": "full fine-tuning",
    "lora": "LoRA",
    "budget": "redundant units only",
    "safeneuron": "SafeNeuron",
    "dpo": "DPO, nothing frozen",
}


def run(run: Run, config_yaml: str) -> Content:
    """Write report.html from the evaluated arms and return what it shows."""
    content = gather(run, config_yaml)
    write_report(content, run.folder.path / FILE)
    return content


def gather(run: Run, config_yaml: str) -> Content:
    """Everything the report shows."""
    from safetensors.numpy import load_file

    c = run.config
    align = run.folder.required("align", "select", run.align_settings())
    selected = run.folder.required("select", "select", run.select_settings())
    mask = NeuronMask.from_pretrained(run.mask(HARDENING.get(c.method.name, ("safety",))[0]))
    neuron_map = NeuronMap.of(load_config(run.start), c.granularity)  # type: ignore[arg-type]
    path = run.folder.path / "selection" / GROUPS_FILE
    groups = load_file(path) if selected["groups"] else {}
    names = [evaluate.START, *c.arms]
    trained = {arm: run.folder.required(f"train-{arm}", "train", run.train_settings(arm)) for arm in c.arms}
    outcomes = {name: evaluate.outcomes(run, name) for name in names}
    arms = [_arm(run, name, outcomes[name], align["aligned"], trained.get(name, {})) for name in names]
    return Content(
        title=f"NeuroFreeze: {c.name}",
        model=c.model,
        model_source=run.source.origin + (", then aligned on data.alignment" if align["aligned"] else ""),
        seed=c.seed,
        version=__version__,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        method=_flat({"granularity": c.granularity, **mask.config.strategy}),
        phrase_list=phrase_list(c.evaluation.phrases).label,
        total_neurons=neuron_map.total,
        total_elements=FreezeSummary.of(neuron_map, mask).total_elements,
        sites=[
            Site(site.name, site.kind, site.layer, groups.get(site.name, _NO_GROUPS), mask.bits[site.name])
            for site in neuron_map.sites.values()
        ],
        arms=arms,
        comparisons=_comparisons(c.arms, outcomes),
        data=[
            DataSource(f"data.{role}", _source(run, role), len(examples), digest(examples))
            for role, examples in run.data.roles().items()
            if role in _used(run, align["aligned"])
        ],
        command=shlex.join(["neurofreeze", "run", *redact(run.overrides)]),
        config_yaml=redact_yaml(config_yaml),
        notes=_notes(run, align),
        search=searched(run),
        pruned=_pruned(run),
        pruned_groups=group_pruning.pruned(run),
        migrations={arm: found for arm in c.arms if (found := migration.transitions(run, arm))},
        robustness=robustness.gathered(run) if c.method.name == "safeneuron" else [],
        overlaps=validate.overlaps(run),
        judged=[row for name, arm in zip(names, arms, strict=True) for row in _judged(run, name, arm.label)],
    )


def _arm(run: Run, name: str, outcomes: Outcomes, aligned: bool, training: dict[str, Any]) -> Arm:
    measured = Measurements(
        refusals=Rate.of(outcomes.refused),
        over_refusals=Rate.of(outcomes.over_refused),
        margin=Mean.of(outcomes.margins),
        domain_loss=Mean.of(outcomes.domain_losses),
        general_loss=Mean.of(outcomes.general_losses),
        degenerate=Rate.of(outcomes.degenerate),
    )
    if name == evaluate.START:
        label = "before fine-tuning (aligned)" if aligned else "before fine-tuning"
        return Arm("aligned", label, measured)
    verification = None if name in UNFROZEN_ARMS else verify.outcome(run, name)
    return Arm(
        name=name,
        label=LABELS[name],
        measurements=measured,
        losses=[(step, loss) for step, loss in training["losses"]],
        frozen_neurons=training["frozen_neurons"],
        frozen_elements=training["frozen_elements"],
        verified_changed=None if verification is None else verification["changed"],
        seconds=training["seconds"],
    )


def _judged(run: Run, name: str, label: str) -> list[Judged]:
    result = judge.judged(run, name)
    if result is None:
        return []
    return [
        Judged(label, variant, result["judge"], degenerate=Rate.of(found["degenerate"]), **rates(found["verdicts"]))
        for variant, found in result["variants"].items()
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _pruned(run: Run) -> list[Pruning]:
    found = validate.pruned(run)
    return [
        Pruning(name, pruned.margin_drop(found["whole"]), pruned.loss_rise(found["whole"]))
        for name, pruned in found.items()
        if name != "whole"
    ]


def _comparisons(arms: list[str], outcomes: dict[str, Outcomes]) -> list[Comparison]:
    # The method first, so that a row reads "safety against none".
    own = [names[0] for names in HARDENING.values()]
    order = sorted(arms, key=("safety", *own, "random", "none", *chain.from_iterable(HARDENING.values())).index)
    return [
        Comparison(first, second, what, PairedTest.of(getattr(outcomes[first], key), getattr(outcomes[second], key)))
        for key, what in (
            ("refused", "refusals of harmful requests"),
            ("over_refused", "refusals of benign look-alikes"),
        )
        for first, second in combinations(order, 2)
    ]


def _source(run: Run, role: str) -> str:
    data = run.config.data
    special = {"holdout": holdout_source(data), "preferences": data.preferences.sources}
    value = special[role] if role in special else getattr(data, role)
    return ", ".join(value) if isinstance(value, list) else value or f"held out from {data.train}"


def _used(run: Run, aligned: bool) -> set[str]:
    unused = {"train", "alignment"} - {run.trained_on} - ({"alignment"} if aligned else set())
    return run.data.roles().keys() - unused


def _notes(run: Run, align: dict[str, Any]) -> list[str]:
    notes = [f"Python {platform.python_version()} on {platform.machine()}, {platform.system()}."]
    if align["aligned"]:
        count, total = align.get("refusals", (0, 0))
        notes.append(
            f"As shipped the model refused {count} of {total} calibration requests, so it was first aligned on "
            f"{len(run.data.alignment)} refusals, look-alikes with answers and general instructions."
        )
    return notes
