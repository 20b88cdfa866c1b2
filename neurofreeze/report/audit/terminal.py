"""An audit for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from neurofreeze.evaluation.statistics import Mean, Rate
from neurofreeze.report.audit.content import AuditContent
from neurofreeze.report.audit.output import early
from neurofreeze.report.formatting import fraction, half_width, rate_interval

_MEASURED = ("harmful\nrefused", "benign\nrefused", "margin", "change", "probe", "KL\nharmful", "KL\nbenign", "loss")


def table(content: AuditContent) -> Table:
    """One row a state, the original first. Fits 80 columns."""
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    found.add_column("state", overflow="fold", min_width=13)
    for name in _MEASURED:
        found.add_column(name, justify="right", no_wrap=True)
    start = content.start
    found.add_row(
        "original", _rate(start.refusals), _rate(start.over_refusals), f"{start.margin.value:.2f}", "", "", "", "",
        f"{start.loss.value:.2f}",
    )  # fmt: skip
    for change in content.changes:
        found.add_row(
            Text(change.label, style="bold red" if change.judgement in ("erodes", "mixed") else ""),
            _rate(change.refusals),
            _rate(change.over_refusals),
            f"{change.margin.value:.2f}",
            _mean(change.margin_change),
            f"{100 * change.separation:.0f} %",
            early(change.kl_harmful),
            early(change.kl_harmless),
            f"{change.loss.value:.2f}{'!' if change.broken else ''}",
        )
    return found


def _rate(rate: Rate) -> str:
    return f"{fraction(rate)}\n{rate_interval(rate)}"


def _mean(mean: Mean) -> str:
    return f"{mean.value:.2f}\n{half_width(mean)}"
