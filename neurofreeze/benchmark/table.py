"""A suite's tables, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from neurofreeze.benchmark.gather import AT_LOSS, REFUSED, ArmResult, Compared, SetResult
from neurofreeze.evaluation.statistics import Mean
from neurofreeze.report.formatting import number, p_value, share_of_one

_RATES = (REFUSED, AT_LOSS, "elsewhere", "over-refused", "degenerate")
_NUMBERS = ("loss", "general loss", "margin")
_NARROW = 7  # columns with one-line cells that fit a terminal
_HEADS = {
    REFUSED: "refused\n%",
    AT_LOSS: "at equal\nloss, %",
    "elsewhere": "else-\nwhere\n%",
    "over-refused": "benign\n%",
    "degenerate": "degen-\nerate\n%",
    "loss": "held-out\nloss",
    "general loss": "general\nloss",
}

Rows = list[list[str]]


def rows_of_arms(found: SetResult) -> tuple[list[str], Rows]:
    """Heads, and a row for the start and each arm: means over seeds with 95 % t intervals' half widths.

    Without a column for degenerate answers where there are none.
    """
    shown = [measure for measure in (*_RATES, *_NUMBERS) if any(arm.values.get(measure) for arm in found.arms)]
    if not any(any(arm.values["degenerate"].values()) for arm in found.arms):
        shown.remove("degenerate")
    heads = ["arm", "seeds", "frozen", *(_HEADS.get(measure, measure) for measure in shown)]
    start = [_number(found.start.get(measure), measure) for measure in shown]
    rows = [["start", "", "-", *start]]
    for arm in found.arms:
        cells = [_cell(arm, measure) for measure in shown]
        rows.append([arm.name, str(arm.seeds), share_of_one(arm.frozen), *cells])
    return heads, rows


def rows_of_tests(compared: Sequence[Compared]) -> tuple[list[str], Rows]:
    """Heads, and a row for each pair of arms, by refusals at the end and at equal loss."""
    heads = ["arm", "against", "refusals", "seeds", "difference, points", "p", "p, Holm"]
    rows = []
    for found in compared:
        where = "at the end" if found.measure == REFUSED else "at equal loss"
        told = [_spread(found.test.difference, 100, 1), _p(found.test.permutation_p), _p(found.holm)]
        rows.append([found.arm, found.against, where, str(found.seeds), *told])
    return heads, rows


def notes(found: SetResult, reach: float | None) -> list[str]:
    """What a reader must know of the tables."""
    told = [
        "Means over seeds with the half width of their 95 % t interval. The tests are paired over seeds: exact "
        "sign-flip permutation (Fisher), then Holm's correction over the arms compared with one."
    ]
    if not found.losses:
        return [*told, "No arm ends below the start's held-out loss, so none are compared at equal loss."]
    at = Mean.of(list(found.losses.values()))
    how = "the highest final loss of that seed's arms" if reach is None else f"that of {reach:.0%} of what was learned"
    told.append(
        f"At equal loss: where a trajectory first comes down to {how} ({at.value:.3f} on average; the start has "
        f"{found.start['loss']:.3f}), linear between measured points, never beyond them."
    )
    for arm in found.arms:
        missing = len(found.losses) - len(arm.values.get(AT_LOSS, {}))
        missing -= len(found.losses.keys() - arm.trajectories.keys())
        if missing:
            told.append(f"{arm.name} does not come down to it in {number(missing, 'seed')}, which are left out there.")
    return told


def as_table(heads: Sequence[str], rows: Rows, names: int) -> Table:
    """For the terminal; the first `names` columns are texts. Arms of short names fit 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for place, head in enumerate(heads):
        text = place < names
        table.add_column(head, justify="left" if text else "right", overflow="fold", min_width=len(head) if text else 5)
    for row in rows:
        table.add_row(*(cell.replace(" ±", "\n±") if len(heads) > _NARROW else cell for cell in row))
    return table


def as_markdown(heads: Sequence[str], rows: Rows) -> str:
    """The same for a document."""
    lines = [
        [head.replace("-\n", "").replace("\n%", ", %").replace("\n", " ") for head in heads],
        ["---"] * len(heads),
        *rows,
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(arm: ArmResult, measure: str) -> str:
    mean = arm.mean(measure)
    return "-" if mean is None else _spread(mean, *_scale(measure))


def _number(value: float | None, measure: str) -> str:
    times, digits = _scale(measure)
    return "-" if value is None else f"{times * value:.{digits}f}"


def _scale(measure: str) -> tuple[float, int]:
    """What a measure is multiplied by, and its decimals."""
    return (100, 1) if measure in _RATES else (1, 2 if measure == "margin" else 3)


def _p(p: float) -> str:
    """Without its "p =", which the head says."""
    return p_value(p).removeprefix("p ").removeprefix("= ")


def _spread(mean: Mean, times: float, digits: int) -> str:
    """'81.3 ±4.0', or the mean alone of a single seed."""
    value = f"{times * mean.value:.{digits}f}"
    return value if mean.total == 1 else f"{value} ±{times * (mean.high - mean.value):.{digits}f}"
