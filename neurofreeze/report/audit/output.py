"""An audit's files: audit.html, audit.md, audit.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from neurofreeze.evaluation.statistics import Mean, Rate
from neurofreeze.files import write_atomically
from neurofreeze.report.audit.content import AuditContent
from neurofreeze.report.audit.html import page
from neurofreeze.report.formatting import fraction, mean_interval, p_value, rate_interval, strict

FIRST_TOKENS = 3  # whose divergence the table has
_HEAD = (
    "", "harmful refused", "p", "look-alikes refused", "refusal margin", "change", "probe", "KL harmful", "KL harmless",
    "loss", "degenerate",
)  # fmt: skip
_NOTES = (
    "p: exact McNemar test of refusals against the original, corrected for the number of states (Holm). Margin and its "
    "paired change in nats. Probe: how far harmful and look-alike prompts are apart on the original's linear probe, as "
    "a share of the original's distance. KL(original || changed) in nats, mean over the first "
    f"{FIRST_TOKENS} tokens of the original's own answers. Loss of ordinary answers in nats per token. Rates with 95 % "
    "Wilson intervals, means with 95 % t intervals."
)


class Cell(NamedTuple):
    """A number, and its interval if it has one."""

    text: str
    interval: str = ""


def rows(content: AuditContent) -> list[list[Cell]]:
    """One row a state, the original first."""
    start = content.start
    first = [
        Cell("original"), _rate(start.refusals), Cell("-"), _rate(start.over_refusals), _mean(start.margin), Cell("-"),
        Cell("100 %"), Cell("-"), Cell("-"), _mean(start.loss, 3), Cell(fraction(start.degenerate)),
    ]  # fmt: skip
    return [first] + [
        [
            Cell(change.label),
            _rate(change.refusals),
            Cell(p_value(change.p_value).removeprefix("p ").removeprefix("= ")),
            _rate(change.over_refusals),
            _mean(change.margin),
            _mean(change.margin_change),
            Cell(f"{100 * change.separation:.0f} %"),
            Cell(early(change.kl_harmful)),
            Cell(early(change.kl_harmless)),
            _mean(change.loss, 3),
            Cell(fraction(change.degenerate)),
        ]
        for change in content.changes
    ]


def early(kl: list[Mean]) -> str:
    """The mean over the first tokens, '-' where there are none."""
    values = [mean.value for mean in kl[:FIRST_TOKENS]]
    return f"{sum(values) / len(values):.3f}" if values else "-"


def markdown(content: AuditContent) -> str:
    """The verdict and the table."""
    lines = [f"# {content.title}", "", f"`{content.command}`", "", *(f"- {text}" for text in content.verdict), ""]
    head = [name or "state" for name in _HEAD]
    lines += [_line(head), _line(["---"] * len(head)), *(_line(map(_plain, row)) for row in rows(content)), ""]
    return "\n".join([*lines, notes(content), ""])


def notes(content: AuditContent) -> str:
    """What the table's numbers are."""
    accuracy = (
        f"The probe is right on {100 * content.start.probe_accuracy:.0f} % of the prompts, which it has not seen."
    )
    return f"{_NOTES} {accuracy} Refusals by {content.phrase_list}."


def write(content: AuditContent, folder: Path) -> list[Path]:
    """Write all files, each whole or not at all; returns their paths."""
    files = {
        "audit.html": page(content, _HEAD, rows(content), notes(content)),
        "audit.md": markdown(content),
        "audit.json": json.dumps(strict(asdict(content)), indent=1, allow_nan=False) + "\n",
    }
    for name, text in files.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in files]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _plain(cell: Cell) -> str:
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text


def _rate(rate: Rate) -> Cell:
    return Cell(fraction(rate), rate_interval(rate))


def _mean(mean: Mean, digits: int = 2) -> Cell:
    return Cell(f"{mean.value:.{digits}f}", mean_interval(mean, digits))
