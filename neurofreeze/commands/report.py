"""neurofreeze report: write report.html from what the other stages left, or compare the runs of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neurofreeze.commands.pipeline import submit
from neurofreeze.commands.settings import compose
from neurofreeze.config.commands import SweepConfig
from neurofreeze.console import console, say

if TYPE_CHECKING:
    from neurofreeze.stages.context import Run


def main(overrides: Sequence[str]) -> int:
    """Write the report of a run, or with `sweep=` of a sweep; prints its table and where it is."""
    if any(override.startswith("sweep=") for override in overrides):
        return compose("report", overrides, _compare, "sweep", needs_folder=False)
    return submit("report", overrides)


def work(run: Run, config_yaml: str) -> int:
    """Write report.html and print its table, on rank 0."""
    from neurofreeze.distributed import first_rank

    return first_rank(lambda: _write(run, config_yaml))


def _write(run: Run, config_yaml: str) -> int:
    from neurofreeze.report.terminal import arms_table, choice_lines, comparisons_lines, robustness_table
    from neurofreeze.stages import report

    content = report.run(run, config_yaml)
    console.print(arms_table(content))
    if content.robustness:
        console.print(robustness_table(content))
    for line in [*choice_lines(content), *comparisons_lines(content)]:
        say(line)
    say("one run, one seed: intervals are over prompts, not over runs")
    say(f"report: {run.folder.path / report.FILE}")
    return 0


def _compare(config: SweepConfig, _: Path, __: str) -> int:
    from neurofreeze.report.sweep.gather import gather
    from neurofreeze.report.sweep.html import write_sweep
    from neurofreeze.report.sweep.terminal import runs_table, seeds_table

    sweep = gather(Path(config.sweep))
    console.print(runs_table(sweep))
    if (seeds := seeds_table(sweep)) is not None:
        say("over seeds: means and ranges")
        console.print(seeds)
    say("95 % Wilson intervals over prompts of one run each")
    say(f"report: {write_sweep(sweep)}")
    return 0
