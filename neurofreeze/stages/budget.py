"""SSAH's alignment budget: redundant units learn to refuse, beside random neurons of the number and the whole model.

All arms train on data.alignment, in the same order for as many steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from neurofreeze.methods import ssah
from neurofreeze.rest import KINDS
from neurofreeze.stages.choosing import Chooser
from neurofreeze.stages.context import Run
from neurofreeze.stages.select import UNFINISHED, keep
from neurofreeze.stages.train import fine_tune_arm

ARM = "budget"


def select(run: Run) -> None:
    """Write selection/budget and selection/random, the masks of what must not change, and the groups."""
    outputs = [run.mask(ARM), run.mask("random")]
    run.folder.run("select", run.select_settings(), lambda: _select(run), *outputs)


def train(run: Run, arm: str) -> None:
    """Train one arm into arms/<arm>, as any arm that has a mask or none."""
    fine_tune_arm(run, arm)


def _select(run: Run) -> dict[str, Any]:
    c = run.config.method
    sets = {"safety": run.data.safety, "utility": run.data.utility}
    safety, utility = Chooser(run).contrast(sets, "select", run.folder.path / "selection" / UNFINISHED)
    groups = ssah.group(safety, utility, replace(ssah.Ratios(**vars(c.ratios)), redundant=c.budget.ratio))
    mask = ssah.freeze_all_but(groups, safety, ssah.RU).with_rest(*KINDS)
    return keep(run, ARM, mask.with_config(strategy={**mask.config.strategy, "method": ARM}), groups)
