"""What pruning SSAH's groups at growing ratios does to one measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from neurofreeze.methods.ratio_search import Curve, Point
from neurofreeze.report.figures.canvas import describe, new_axes, to_png
from neurofreeze.report.palette import FROZEN, GRID, MUTED

_MARKERS = {"ESU": "o", "EUU": "s", "RU": "^"}
_APART = 1.02  # so that the whiskers of equal ratios do not cover each other


def ratio_curves(title: str, curves: Sequence[Curve], attribute: str, tolerance: float, unit: str) -> bytes:
    """One line a group with interval whiskers; the ratio that was taken is ringed, the tolerance dashed.

    Args:
        title: printed above.
        curves: as the search found them.
        attribute: of `Point`, "margin_drop" or "loss_rise".
        tolerance: in this measure, for the groups that must spare it.
        unit: of the measure.
    """
    axes = new_axes(5.6, 3.4)
    for place, curve in enumerate(curves):
        colour, across = FROZEN[curve.group], [100 * p.ratio * _APART ** (place - 1) for p in curve.points]
        means = [getattr(point, attribute) for point in curve.points]
        axes.vlines(across, [m.low for m in means], [m.high for m in means], color=colour, linewidth=1.1)
        axes.plot(
            across, [m.value for m in means],
            color=colour, linewidth=1.6, marker=_MARKERS[curve.group], markersize=4.5, label=curve.group,
        )  # fmt: skip
        taken = [point.ratio for point in curve.points].index(curve.chosen)
        axes.plot(
            across[taken], means[taken].value,
            linestyle="none", marker="o", markersize=11, markerfacecolor="none", markeredgecolor=colour,
        )  # fmt: skip
    _ratio_axis(axes, [point for curve in curves for point in curve.points])
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axhline(tolerance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="tolerance")
    if tolerance:  # far smaller than what large ratios do: linear up to it, logarithmic beyond
        axes.set_yscale("symlog", linthresh=tolerance)
        axes.yaxis.set_major_locator(FixedLocator(_decades(tolerance)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.margins(y=0.1)
    axes.legend(fontsize=9, frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1.1), borderaxespad=0.2)
    describe(axes, title, "% of the neurons of each kind pruned (ring: the ratio taken)", unit)
    return to_png(axes)


def _decades(tolerance: float) -> list[float]:
    steps = [tolerance * 10**power for power in range(5)]
    return [*(-step for step in reversed(steps)), 0, *steps]


def _ratio_axis(axes: Any, points: Sequence[Point]) -> None:
    ratios = sorted({100 * point.ratio for point in points})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ratios))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{ratio:g}" for ratio in ratios]))
    axes.xaxis.set_minor_locator(NullLocator())
