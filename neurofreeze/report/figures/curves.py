"""Training loss over optimizer steps, one line an arm."""

from __future__ import annotations

from collections.abc import Sequence

from neurofreeze.report.content import Arm
from neurofreeze.report.figures.canvas import describe, new_axes, to_png
from neurofreeze.report.palette import GRID, arm_colours

_DASHES: tuple[object, ...] = ("solid", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)))


def loss_curves(arms: Sequence[Arm]) -> bytes:
    """Curves of the arms that have losses; they differ in dash as in colour, for curves often coincide."""
    axes = new_axes(6.4, 3.2)
    colours = arm_colours(arms)
    for place, arm in enumerate(arm for arm in arms if arm.losses):
        steps, losses = zip(*arm.losses, strict=True)
        axes.plot(
            steps, losses, label=arm.label, color=colours[arm.name], linewidth=1.6,
            linestyle=_DASHES[place % len(_DASHES)], marker="o" if len(steps) == 1 else "",
        )  # fmt: skip
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.legend(fontsize=9, frameon=False)
    describe(axes, "Training loss", "optimizer step", "nats per token")
    return to_png(axes)
