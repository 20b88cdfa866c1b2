"""neurofreeze report: write report.html from what the other stages left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neurofreeze.commands.pipeline import submit
from neurofreeze.console import console, say

if TYPE_CHECKING:
    from neurofreeze.stages.context import Run


def main(overrides: Sequence[str]) -> int:
    """Write the report; prints the table of arms and where the report is."""
    return submit("report", overrides)


def work(run: Run, config_yaml: str) -> int:
    """Write report.html and print its table, on rank 0."""
    from neurofreeze.distributed import first_rank

    return first_rank(lambda: _write(run, config_yaml))


def _write(run: Run, config_yaml: str) -> int:
    from neurofreeze.report.terminal import arms_table, choice_lines, comparisons_lines
    from neurofreeze.stages import report

    content = report.run(run, config_yaml)
    console.print(arms_table(content))
    for line in [*choice_lines(content), *comparisons_lines(content)]:
        say(line)
    say("one run, one seed: intervals are over prompts, not over runs")
    say(f"report: {run.folder.path / report.FILE}")
    return 0
