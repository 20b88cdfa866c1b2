"""Masks side by side: their overlaps, over all neurons and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from rich.table import Table

from neurofreeze.mask import NeuronMask
from neurofreeze.report.figures.canvas import describe, new_axes, to_png
from neurofreeze.report.palette import KINDS, MUTED
from neurofreeze.strategies.stability import Overlap

Layers = dict[tuple[str, str], dict[int, Overlap]]
_COLOURS = (*KINDS.values(), "#009e73", "#cc79a7", "#d55e00", "#3e4c59")


def by_layer(masks: Mapping[str, NeuronMask]) -> Layers:
    """For every pair of masks: layer -> overlap of the two there.

    Raises:
        MaskError: if two masks are for different models.
    """
    return {(a, b): _layers(masks[a], masks[b]) for a, b in combinations(masks, 2)}


def table(masks: Mapping[str, NeuronMask], layers: Layers) -> Table:
    """A row a pair: the overlap over all neurons, by chance, and the layers where it is largest and smallest."""
    found = Table(
        "masks", caption="Jaccard index |A and B| / |A or B|; by chance: of random masks with as many neurons"
    )
    found.columns[0].no_wrap = True
    for column in ("neurons", "overlap", "by chance", "most, layer", "least, layer"):
        found.add_column(column, justify="right")
    for (a, b), here in layers.items():
        whole = Overlap.of(masks[a], masks[b])
        most, least = (pick(here, key=lambda layer: here[layer].jaccard) for pick in (max, min))
        found.add_row(
            f"{a} | {b}",
            f"{masks[a].count:,} | {masks[b].count:,}",
            f"{whole.jaccard:.3f}",
            f"{whole.by_chance:.3f}",
            f"{here[most].jaccard:.3f}, {most}",
            f"{here[least].jaccard:.3f}, {least}",
        )
    return found


def figure(layers: Layers) -> bytes:
    """PNG: a line a pair over the layers, dotted where chance would put it."""
    axes = new_axes(7.0, 3.2)
    for number, ((a, b), here) in enumerate(layers.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(list(here), [o.jaccard for o in here.values()], color=colour, marker="o", ms=3, label=f"{a} | {b}")
        axes.plot(list(here), [o.by_chance for o in here.values()], color=colour, linestyle=":", linewidth=1)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8, labelcolor=MUTED, loc="upper left", bbox_to_anchor=(1, 1))
    describe(axes, "Overlap of masks (dotted: by chance)", "layer", "Jaccard index")
    return to_png(axes)


def _layers(first: NeuronMask, second: NeuronMask) -> dict[int, Overlap]:
    first & second
    numbers = sorted({int(site.split(".")[1]) for site in first.config.neurons})
    return {number: Overlap.of(_only(first, number), _only(second, number)) for number in numbers}


def _only(mask: NeuronMask, layer: int) -> NeuronMask:
    bits = {name: values & (int(name.split(".")[1]) == layer) for name, values in mask.bits.items()}
    return NeuronMask(bits, mask.config)
