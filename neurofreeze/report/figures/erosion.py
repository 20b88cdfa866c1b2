"""Refusal margin and refusals against the strength of an intervention, or the number of neurons that are pruned."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from neurofreeze.evaluation.statistics import Mean
from neurofreeze.guard.audit.changes import Change
from neurofreeze.report.figures.canvas import describe, new_axes, to_png
from neurofreeze.report.palette import GRID, MUTED, colours

_MARKERS = "os^Dv"


def margin_erosion(start: Mean, changes: Sequence[Change], axis: str) -> bytes:
    """One line a series with interval whiskers, labelled with refusals; the dashed line is the original.

    Args:
        start: the original's margin.
        changes: in order; those without an x stand side by side.
        axis: what x is.
    """
    axes = new_axes(6.4, 3.6)
    names = list(dict.fromkeys(change.series for change in changes))
    shades = colours(names)
    percent = 100 if any(change.neurons and change.x is not None for change in changes) else 1
    for place, name in enumerate(names):
        found = [change for change in changes if change.series == name]
        across = [float(place) if change.x is None else percent * change.x for change in found]
        margins = [change.margin for change in found]
        axes.vlines(across, [m.low for m in margins], [m.high for m in margins], color=shades[name], linewidth=1.1)
        axes.plot(
            across, [m.value for m in margins],
            color=shades[name], linewidth=1.6, marker=_MARKERS[place % len(_MARKERS)], markersize=4.5, label=name,
        )  # fmt: skip
        for x, change in zip(across, found, strict=True):
            axes.annotate(
                f"{100 * change.refusals.value:.0f} %", (x, change.margin.value), (5, 5),
                textcoords="offset points", fontsize=8, color=shades[name],
            )  # fmt: skip
    axes.axhline(start.value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="original")
    axes.axhline(0, color=GRID, linewidth=0.8)
    single = all(change.x is None for change in changes)
    if single:
        axes.set_xticks([])
        axes.set_xlim(-1, len(names))
    elif percent != 1:
        axes.set_xscale("log")
        ticks = sorted({percent * change.x for change in changes if change.x is not None})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.legend(fontsize=9, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    title = "Refusal margin (labels: harmful requests refused)"
    describe(axes, title, "" if single else axis, "nats")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=26)
    return to_png(axes)
