"""Share of each layer's neurons that is frozen."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.ticker import MaxNLocator

from neurofreeze.report.figures.canvas import describe, new_axes, to_png
from neurofreeze.report.layers import KINDS, Count
from neurofreeze.report.palette import GRID
from neurofreeze.report.palette import KINDS as COLOURS

_NAMES = {"mlp": "MLP neurons", "attention": "attention neurons"}


def frozen_shares(layers: Mapping[int, Mapping[str, Count]]) -> bytes:
    """Two bars a layer, MLP and attention; `layers` as `layers.by_layer` counts them."""
    axes = new_axes(6.4, 2.8)
    for side, kind in zip((-0.2, 0.2), KINDS, strict=True):
        found = {layer: row[kind] for layer, row in layers.items() if row[kind].total}
        if found:
            axes.bar(
                [layer + side for layer in found],
                [100 * count.frozen / count.total for count in found.values()],
                width=0.38, color=COLOURS[kind], label=_NAMES[kind],
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.legend(fontsize=9, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    describe(axes, "Frozen share per layer", "layer", "% of the layer's neurons")
    return to_png(axes)
