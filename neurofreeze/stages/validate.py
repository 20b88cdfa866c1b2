"""Validate: whether pruning the chosen neurons lowers the refusal margin, and whether other prompts choose others."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from neurofreeze.console import console, say, stage
from neurofreeze.evaluation.likelihood import COMPLYING, REFUSING
from neurofreeze.evaluation.pruning import Pruned, prune
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import settings_digest
from neurofreeze.stages.select import Chooser
from neurofreeze.strategies.stability import mean, stability


def run(run: Run) -> None:
    """Do what `validation` asks for, print it and keep it."""
    c = run.config.validation
    selection = settings_digest(run.select_settings())
    if c.mode == "prune":
        settings = {
            "selection": selection,
            "draws": c.draws,
            "data": run.data.digests("harmful", "general"),
        }
        found = run.folder.run("validate-prune", settings, lambda: _prune(run))
        console.print(_table({name: Pruned(**pruned) for name, pruned in found["pruned"].items()}))
    if c.splits:
        run.folder.run("validate-stability", {"selection": selection, "splits": c.splits}, lambda: _stability(run))


def _prune(run: Run) -> dict[str, Any]:
    c = run.config
    mask = NeuronMask.from_pretrained(run.mask("safety"))
    masks: dict[str, NeuronMask | None] = {"whole": None, "chosen": mask}
    masks |= {f"random {draw}": NeuronMask.random_like(mask, c.seed + draw) for draw in range(c.validation.draws)}
    model, tokenizer = load_model(run.start), load_tokenizer(run.start)
    size = c.evaluation.batch_size
    batches = -(-len(run.data.harmful) * (len(REFUSING) + len(COMPLYING)) // size) + -(-len(run.data.general) // size)
    with stage("validate by pruning", batches * len(masks)) as bar:
        pruned = {
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
    return {"pruned": {name: asdict(found) for name, found in pruned.items()}}


def _stability(run: Run) -> dict[str, Any]:
    c, chooser = run.config, Chooser(run)
    sets = {"safety": run.data.safety, "utility": run.data.utility}
    overlaps = stability(lambda half: chooser.choose(half, "validate on a half")[0], sets, c.validation.splits, c.seed)
    found = mean(overlaps)
    say(f"choices on halves of the calibration sets overlap by {found.jaccard:.3f}, by chance {found.by_chance:.3f}")
    return {"overlaps": [asdict(overlap) for overlap in overlaps]}


def _table(pruned: dict[str, Pruned]) -> Table:
    table = Table("pruned", caption="95 % intervals over prompts; nats")
    for column in ("refusal margin falls by", "loss rises by"):
        table.add_column(column, justify="right")
    for name, found in pruned.items():
        if name != "whole":
            table.add_row(name, str(found.margin_drop(pruned["whole"])), str(found.loss_rise(pruned["whole"])))
    return table
