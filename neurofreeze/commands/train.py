"""neurofreeze train: fine-tune each arm, with its neurons frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neurofreeze.commands.pipeline import submit
from neurofreeze.config.schema import UNFROZEN_ARMS
from neurofreeze.console import say

if TYPE_CHECKING:
    from neurofreeze.stages.context import Run


def main(overrides: Sequence[str]) -> int:
    """Train the arms that are not complete; needs `select` unless only the arm `none` is asked for."""
    return submit("train", overrides)


def work(run: Run, _: str) -> int:
    """Align if need be, then train every arm."""
    from neurofreeze.distributed import first_rank
    from neurofreeze.stages import align, train

    if not set(run.config.arms) <= set(UNFROZEN_ARMS):
        # Before minutes go into the arm that needs no mask.
        first_rank(lambda: run.folder.required("select", "select", run.select_settings()))
    align.run(run)
    for arm in run.config.arms:
        train.run(run, arm)
        say(f"checkpoint: {run.arm(arm)}")
    return 0
