"""Validate: whether pruning the chosen neurons lowers the refusal margin, and whether other prompts choose others.

Pruning is measured on the evaluation prompts, which the choice has not seen.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from neurofreeze.console import console, say, stage
from neurofreeze.evaluation.pruning import Pruned, prune, steps
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.stages import group_pruning
from neurofreeze.stages.checked import checked
from neurofreeze.stages.choosing import Chooser
from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import settings_digest
from neurofreeze.strategies.stability import Overlap, mean, stability


def run(run: Run) -> None:
    """Do what `validate` asks for, print it and keep it."""
    c = run.config.validate
    selection = settings_digest(run.select_settings())
    if c.mode == "prune":
        settings = {
            "selection": selection,
            "draws": c.draws,
            "data": run.data.digests("harmful", "general"),
        }
        console.print(_table(_measured(run.folder.run("validate-prune", settings, lambda: _prune(run)))))
    if c.mode == "groups":
        group_pruning.run(run)
    if c.splits:
        settings = {"selection": selection, "splits": c.splits}
        found = mean(_overlaps(run.folder.run("validate-stability", settings, lambda: _stability(run))))
        say(
            f"choices on halves of the calibration sets overlap by {found.jaccard:.3f}, by chance {found.by_chance:.3f}"
        )


def pruned(run: Run) -> dict[str, Pruned]:
    """What was measured of "whole", "chosen", "random 0"...; empty if the masks at hand were not validated so."""
    return _measured(checked(run, "validate-prune") or {"pruned": {}})


def overlaps(run: Run) -> list[Overlap]:
    """The overlap of each split's two choices; empty if the masks at hand were not validated so."""
    return _overlaps(checked(run, "validate-stability") or {"overlaps": []})


def _measured(result: dict[str, Any]) -> dict[str, Pruned]:
    return {name: Pruned(**measured) for name, measured in result["pruned"].items()}


def _overlaps(result: dict[str, Any]) -> list[Overlap]:
    return [Overlap(**overlap) for overlap in result["overlaps"]]


def _prune(run: Run) -> dict[str, Any]:
    c = run.config
    mask = NeuronMask.from_pretrained(run.mask("safety"))
    masks: dict[str, NeuronMask | None] = {"whole": None, "chosen": mask}
    drawn = NeuronMask.random_draws(mask, c.seed, c.validate.draws)
    masks |= {f"random {number}": draw for number, draw in enumerate(drawn)}
    model, tokenizer = load_model(run.start), load_tokenizer(run.start)
    size = c.evaluation.batch_size
    with stage("validate by pruning", steps(run.data.harmful, run.data.general, size) * len(masks)) as bar:
        found = {
            name: prune(
                model,
                tokenizer,
                chosen,
                run.data.harmful,
                run.data.general,
                batch_size=size,
                max_length=c.strategy.max_length,
                progress=bar.advance,
            )
            for name, chosen in masks.items()
        }
    return {"pruned": {name: asdict(measured) for name, measured in found.items()}}


def _stability(run: Run) -> dict[str, Any]:
    c, chooser = run.config, Chooser(run)
    sets = {"safety": run.data.safety, "utility": run.data.utility}
    found = stability(lambda half: chooser.choose(half, "validate on a half").mask, sets, c.validate.splits, c.seed)
    return {"overlaps": [asdict(overlap) for overlap in found]}


def _table(pruned: dict[str, Pruned]) -> Table:
    table = Table("pruned", caption="95 % intervals over prompts; nats")
    for column in ("refusal margin falls by", "loss rises by"):
        table.add_column(column, justify="right")
    for name, found in pruned.items():
        if name != "whole":
            table.add_row(name, str(found.margin_drop(pruned["whole"])), str(found.loss_rise(pruned["whole"])))
    return table
