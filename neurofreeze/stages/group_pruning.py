"""Prune each of SSAH's groups: what becomes of safety and utility without it, and without random neurons of its size.

Measured on the evaluation prompts, which the groups have not seen.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from neurofreeze.console import console, say
from neurofreeze.evaluation.group_pruning import IN_PAPER, GroupPruned
from neurofreeze.evaluation.measure import EvaluationData, Outcomes
from neurofreeze.evaluation.phrases import phrase_list
from neurofreeze.mask import NeuronMask
from neurofreeze.methods import ssah
from neurofreeze.report.formatting import fraction, rate_interval, share
from neurofreeze.stages import judge
from neurofreeze.stages.checked import checked
from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import settings_digest
from neurofreeze.stages.pruning import outcomes_without
from neurofreeze.stages.select import kept_groups

STAGE = "validate-groups"
ORDER = (ssah.ESU, ssah.EUU, ssah.CU, ssah.RU)  # the paper's


def run(run: Run) -> None:
    """Prune every group, print the table and keep it."""
    c = run.config
    settings = {
        "selection": settings_digest(run.select_settings()),
        "draws": c.validate.draws,
        "evaluation": {key: value for key, value in asdict(c.evaluation).items() if key not in judge.SETTINGS},
        "max_length": c.training.max_length,
        "data": run.data.digests("harmful", "lookalikes", "holdout", "general"),
    }
    result = run.folder.run(STAGE, settings, lambda: _prune(run, settings), together=True)
    console.print(_table(_measured(result), run))
    for found in IN_PAPER:
        say(f"in the paper, ESU of {found}")


def pruned(run: Run) -> list[GroupPruned]:
    """The whole model, and it without each group and its random controls; empty if these groups were not pruned."""
    return _measured(checked(run, STAGE) or {"pruned": []})


def _measured(result: dict[str, Any]) -> list[GroupPruned]:
    outcomes = {row["label"]: Outcomes(**row["outcomes"]) for row in result["pruned"]}
    return [
        GroupPruned.of(row["label"], row["neurons"], outcomes[row["label"]], outcomes["whole"])
        for row in result["pruned"]
    ]


def _prune(run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    c, groups = run.config, kept_groups(run)
    masks: dict[str, NeuronMask | None] = {"whole": None}
    for code in ORDER:
        name, own = ssah.GROUPS[code], groups.mask(code)
        if own.count:
            masks[name] = own
            for number, draw in enumerate(NeuronMask.random_draws(own, c.seed, c.validate.draws)):
                masks[f"random like {name}, {number}"] = draw
    data = EvaluationData(run.data.harmful, run.data.lookalikes, run.data.holdout, run.data.general)
    found = outcomes_without(run, STAGE, settings, run.start, masks, data)
    return {
        "pruned": [
            {"label": label, "neurons": mask.count if mask else 0, "outcomes": asdict(found[label])}
            for label, mask in masks.items()
        ]
    }


def _table(pruned: list[GroupPruned], run: Run) -> Table:
    total = run.folder.required("select", "select")["total"]
    phrases = phrase_list(run.config.evaluation.phrases).label
    table = Table(
        "pruned",
        caption=f"Attacks succeed where {phrases} finds no refusal, degenerate answers included. 95 % intervals over "
        "prompts; margin in nats, losses in nats per token.",
    )
    for column in ("attacks\nsucceed", "benign\nrefused", "degen-\nerate", "margin", "domain\nloss", "general\nloss"):
        table.add_column(column, justify="right", no_wrap=True)
    for found in pruned:
        table.add_row(
            Text(f"{found.label}\n{share(found.neurons, total) if found.neurons else ''}".strip()),
            *(f"{fraction(rate)}\n{rate_interval(rate)}" for rate in (found.attacks, found.over_refusals)),
            fraction(found.degenerate),
            *(f"{mean.value:.2f}" for mean in (found.margin, found.domain_loss, found.general_loss)),
        )
    return table
