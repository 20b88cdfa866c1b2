"""neurofreeze run: align if need be, select, validate if asked for, train, verify, evaluate, report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neurofreeze.commands import report
from neurofreeze.commands.pipeline import submit
from neurofreeze.config.schema import UNFROZEN_ARMS

if TYPE_CHECKING:
    from neurofreeze.stages.context import Run


def main(overrides: Sequence[str]) -> int:
    """Run every stage that is not complete yet; prints the table of arms and where the report is."""
    return submit("run", overrides)


def work(run: Run, config_yaml: str) -> int:
    """Every stage in order."""
    from neurofreeze.stages import align, evaluate, judge, migration, select, train, validate, verify

    judged = (evaluate.START, *run.config.arms)
    judge.require(run, judged)  # before anything is trained
    align.run(run)
    select.run(run)
    validate.run(run)
    for arm in run.config.arms:
        train.run(run, arm)
        if arm not in UNFROZEN_ARMS:
            verify.run(run, arm)
    for name in judged:
        evaluate.run(run, name)
    if run.config.validate.migration:
        for arm in run.config.arms:
            migration.run(run, arm)
    return report.work(run, config_yaml)
