"""Migration: which neurons of a fine-tuned arm are in another of SSAH's groups than before fine-tuning."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from neurofreeze.config.schema import UNFROZEN_ARMS
from neurofreeze.console import console, say
from neurofreeze.mask import NeuronMask
from neurofreeze.methods import ssah
from neurofreeze.methods.migration import Transitions
from neurofreeze.report.formatting import share
from neurofreeze.stages.choosing import Chooser
from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import settings_digest
from neurofreeze.stages.select import kept_groups


def run(run: Run, arm: str) -> None:
    """Group an arm's neurons anew, by the same calibration sets and ratios, print how many moved and keep it."""
    run.folder.required("select", "select")
    run.folder.required(f"train-{arm}", "train")
    settings = {
        "selection": settings_digest(run.select_settings()),
        "train": settings_digest(run.train_settings(arm)),
    }
    result = run.folder.run(f"migration-{arm}", settings, lambda: _migration(run, arm))
    found = [Transitions(**each) for each in result["transitions"]]
    console.print(_table(arm, found[0]))
    say(f"migration {arm}: {'; '.join(map(str, found))}")


def transitions(run: Run, arm: str) -> list[Transitions]:
    """Of all neurons, of those in a mask and of the others; empty if the checkpoint at hand was not looked at."""
    name = f"migration-{arm}"
    settings = run.folder.settings(name)
    for key, stage in (("selection", "select"), ("train", f"train-{arm}")):
        now = run.folder.settings(stage)
        if settings is None or now is None or settings[key] != settings_digest(now):
            return []
    return [Transitions(**found) for found in run.folder.required(name, "evaluate")["transitions"]]


def _migration(run: Run, arm: str) -> dict[str, Any]:
    before = kept_groups(run)
    sets = {"safety": run.data.safety, "utility": run.data.utility}
    after = ssah.group(*Chooser(run, run.arm(arm)).contrast(sets, f"migration {arm}"), before.ratios)
    # Without a mask of its own an arm shows what the method's neurons do where they are free.
    mask = NeuronMask.from_pretrained(run.mask("safety" if arm in UNFROZEN_ARMS else arm))
    parts = (
        ("of the safety mask, not frozen here", "others")
        if arm in UNFROZEN_ARMS
        else ("frozen neurons", "trained neurons")
    )
    counted = (None, mask.bits, (~mask).bits)
    found = [
        Transitions.between(of, before.codes, after.codes, chosen)
        for of, chosen in zip(("all neurons", *parts), counted, strict=True)
    ]
    return {"transitions": [asdict(each) for each in found]}


def _table(arm: str, found: Transitions) -> Table:
    table = Table(f"{arm}: from", caption="Neurons by group, before (rows) and after fine-tuning (columns).")
    for name in ssah.GROUPS:
        table.add_column(f"to {name}", justify="right", no_wrap=True)
    for name, row in zip(ssah.GROUPS, found.counts, strict=True):
        table.add_row(name, *(f"{count:,}\n{share(count, sum(row))}" for count in row))
    return table
