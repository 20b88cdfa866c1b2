"""neurofreeze evaluate: measure the starting checkpoint and every arm that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neurofreeze.commands.pipeline import submit
from neurofreeze.console import say

if TYPE_CHECKING:
    from neurofreeze.stages.context import Run


def main(overrides: Sequence[str]) -> int:
    """Evaluate what is there; in a new folder that is the model as it is."""
    return submit("evaluate", overrides)


def work(run: Run, _: str) -> int:
    """Evaluate the start and every trained arm."""
    from neurofreeze.distributed import first_rank
    from neurofreeze.stages import align, evaluate, judge, migration

    align.require_same_weights(run)
    trained = first_rank(lambda: [arm for arm in run.config.arms if run.folder.result(f"train-{arm}") is not None])
    names = (evaluate.START, *trained)
    judge.require(run, names)  # before anything is answered
    for name in names:
        evaluate.run(run, name)
    if run.config.validate.migration:
        for arm in trained:
            migration.run(run, arm)
    for arm in run.config.arms:
        if arm not in trained:
            say(f"evaluate {arm}: not trained, left out")
    return 0
