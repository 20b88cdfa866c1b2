"""How far the next token's distribution is from the original's, by position of the answer."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from neurofreeze.guard.audit.changes import Change
from neurofreeze.report.figures.canvas import describe, new_axes, to_png
from neurofreeze.report.palette import GRID, colours

_SHOWN = 5  # states beyond which lines would hide one another


def divergence_curves(changes: Sequence[Change]) -> bytes:
    """Two lines a state, harmful prompts solid and harmless ones dashed; of many states the last ones."""
    axes = new_axes(6.4, 3.6)
    shown = [change for change in changes if not change.series.startswith("random")][-_SHOWN:] or changes[-_SHOWN:]
    shades = colours(change.label for change in shown)
    for change in shown:
        for kl, style, of in ((change.kl_harmful, "solid", "harmful"), (change.kl_harmless, "dashed", "harmless")):
            axes.plot(
                range(1, len(kl) + 1), [mean.value for mean in kl],
                color=shades[change.label], linewidth=1.6, linestyle=style, marker=".", label=f"{change.label}, {of}",
            )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    describe(axes, "KL(original || changed)", "position in the original's own answer", "nats")
    return to_png(axes)
