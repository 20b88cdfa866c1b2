"""The comparison of a sweep's runs for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from neurofreeze.evaluation.statistics import Rate
from neurofreeze.report.formatting import fraction, percent_range, plain, rate_interval, share_of_one
from neurofreeze.report.sweep.content import OverSeeds, Sweep, SweepArm

_MEASURED = ("harmful\nrefused", "benign\nrefused", "margin", "domain\nloss", "frozen", "verified")


def runs_table(sweep: Sweep) -> Table:
    """One row a run and arm; a run without numbers has one with its state. Fits 80 columns."""
    table = _table(["run", "settings", "arm"], _MEASURED)
    if sweep.start is not None:
        table.add_row("all", "", "start", *_cells(sweep.start))
    for run in sweep.runs:
        told = _told(run.settings)
        if not run.complete:
            told.append(("\n" if told.plain else "") + run.state, style="bold red")
        for place, arm in enumerate(run.arms):
            table.add_row(*((run.name, told) if place == 0 else ("", "")), arm.name, *_cells(arm))
        if not run.arms:
            table.add_row(run.name, told)
    return table


def seeds_table(sweep: Sweep) -> Table | None:
    """One row an arm of runs that differ only by seed; None where there are none."""
    if not sweep.seeds:
        return None
    table = _table(["settings", "arm"], ("seeds", *_MEASURED[:4]))
    for found in sweep.seeds:
        table.add_row(_told(found.settings), found.arm, str(found.seeds), *_spreads(found))
    return table


def _table(names: list[str], measured: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for name in measured:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _told(settings: Mapping[str, str]) -> Text:
    return Text("\n".join(f"{key}={text}" for key, text in settings.items()))


def _cells(arm: SweepArm) -> list[Text]:
    verified = Text(arm.verified, style="bold red" if arm.verified == "CHANGED" else "")
    numbers = [
        _rate(arm.refusals),
        _rate(arm.over_refusals),
        plain(arm.margin),
        plain(arm.domain_loss),
        share_of_one(arm.frozen),
    ]
    return [*map(Text, numbers), verified]


def _rate(rate: Rate | None) -> str:
    return "-" if rate is None else f"{fraction(rate)}\n{rate_interval(rate)}"


def _spreads(found: OverSeeds) -> list[str]:
    return [
        *(f"{100 * of.mean:.0f} %\n{percent_range(of.low, of.high)}" for of in (found.refusals, found.over_refusals)),
        *(f"{of.mean:.2f}\n{of.low:.2f} to {of.high:.2f}" for of in (found.margin, found.domain_loss)),
    ]
