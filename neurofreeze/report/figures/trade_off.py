"""Refusals kept against what was learned: one point a run and arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from neurofreeze.report.figures.canvas import describe, new_axes, to_png
from neurofreeze.report.palette import GRID, INK, MUTED, colours
from neurofreeze.report.sweep.content import Sweep, SweepArm, SweepRun

_MARKERS = "osD^vP*X"
_LABELLED = 60  # points beyond which labels would hide one another


def trade_off(sweep: Sweep) -> bytes:
    """Points of the arms of all runs, each labelled with its run; up and left is better."""
    axes = new_axes(6.4, 4.2)
    points = sweep.points
    arms = list(dict.fromkeys(arm.name for _, arm in points))
    shades = colours(arms)
    for place, name in enumerate(arms):
        found = [(run, arm) for run, arm in points if arm.name == name]
        axes.scatter(
            [arm.domain_loss for _, arm in found],
            [100 * arm.refusals.value for _, arm in found if arm.refusals],
            s=44, color=shades[name], marker=_MARKERS[place % len(_MARKERS)], edgecolor="white", linewidth=0.8,
            label=name, zorder=3,
        )  # fmt: skip
    for (loss, refused), names in _labels(points).items() if len(points) <= _LABELLED else ():
        axes.annotate(", ".join(names), (loss, refused), (5, 3), textcoords="offset points", fontsize=8, color=INK)
    if sweep.start is not None and sweep.start.refusals is not None:
        axes.axhline(100 * sweep.start.refusals.value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(-4, 104)
    axes.margins(x=0.08)
    axes.grid(color=GRID, linewidth=0.6)
    if arms:
        axes.legend(fontsize=9, frameon=False, ncols=len(arms), loc="lower right", bbox_to_anchor=(1, 1))
    describe(axes, "Refusals and domain loss", "domain loss, nats per token", "% of harmful requests refused")
    return to_png(axes)


def _labels(points: Sequence[tuple[SweepRun, SweepArm]]) -> dict[tuple[float, float], list[str]]:
    """Place -> the runs there; those that the figure could not tell apart share one label."""
    found: dict[tuple[float, float], list[str]] = defaultdict(list)
    for run, arm in points:
        if arm.refusals is not None and arm.domain_loss is not None:
            found[round(arm.domain_loss, 3), round(100 * arm.refusals.value)].append(run.name)
    return found
