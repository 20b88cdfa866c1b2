"""A rate per arm as horizontal bars with interval whiskers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from neurofreeze.evaluation.statistics import Rate
from neurofreeze.report.content import Arm
from neurofreeze.report.figures.canvas import describe, new_axes, to_png
from neurofreeze.report.formatting import fraction
from neurofreeze.report.palette import GRID, INK, MUTED, arm_colours


def rate_bars(title: str, arms: Sequence[Arm], rates: Mapping[str, Rate]) -> bytes:
    """One bar an arm with its count; a dashed line carries the first arm's rate through the others.

    Args:
        title: printed above.
        arms: from top to bottom.
        rates: arm name -> rate.
    """
    axes = new_axes(5.6, 0.9 + 0.5 * len(arms))
    colours = arm_colours(arms)
    for place, arm in enumerate(arms):
        rate = rates[arm.name]
        axes.barh(place, 100 * rate.value, height=0.62, color=colours[arm.name])
        if math.isfinite(rate.low) and math.isfinite(rate.high):
            low, high = 100 * rate.low, 100 * rate.high
            axes.plot([low, high], [place, place], color=INK, linewidth=1.3)
            axes.plot([low, high], [place, place], color=INK, linestyle="none", marker="|", markersize=7)
        axes.annotate(
            fraction(rate), (1, place), (6, 0), ("axes fraction", "data"), "offset points",
            va="center", fontsize=9, color=INK, annotation_clip=False,
        )  # fmt: skip
    if len(arms) > 1:
        axes.axvline(100 * rates[arms[0].name].value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(arms)), [textwrap.fill(arm.label, 24) for arm in arms], color=INK)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 25))
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.spines["bottom"].set_visible(False)
    describe(axes, title, "% of prompts, 95 % Wilson interval")
    return to_png(axes)
