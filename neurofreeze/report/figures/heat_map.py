"""Layers x neurons, coloured by group; saturated where frozen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb

from neurofreeze.report.content import GROUPS, Site
from neurofreeze.report.figures.canvas import describe, new_axes, to_png
from neurofreeze.report.palette import FROZEN, PALE

ORDERED_UP_TO = 64  # neurons a site; more are sorted by group, since single ones could not be seen anyway
WIDEST = 1000  # columns: about as many as the picture has pixels across

Codes = npt.NDArray[np.intp]
Image = npt.NDArray[np.uint8]

# Codes run as a sorted row does: safety units first, and the frozen ones of each group before the others.
_COLOURS: Image = np.array(
    [to_rgb(shade[group]) for group in reversed(GROUPS) for shade in (FROZEN, PALE)] + [(1, 1, 1)]
)
_COLOURS = np.round(255 * _COLOURS).astype(np.uint8)
_BLANK = 2 * len(GROUPS)


def heat_map(title: str, sites: Sequence[Site], width: float) -> bytes:
    """A row a site, first layer on top, `width` inches wide."""
    rows = len(sites)
    axes = new_axes(width, min(max(1.2 + 0.12 * rows, 2.2), 6.5))
    most = max(len(site.groups) for site in sites)
    axes.imshow(
        _COLOURS[_codes(sites, most)],
        aspect="auto", interpolation="nearest", extent=(0, most, rows, 0),
    )  # fmt: skip
    if most <= ORDERED_UP_TO:
        axes.set_xticks([place + 0.5 for place in range(0, most, -(-most // 10))], range(0, most, -(-most // 10)))
        axes.vlines(range(1, most), 0, rows, color="white", linewidth=0.8)
    if rows <= ORDERED_UP_TO:
        axes.hlines(range(1, rows), 0, most, color="white", linewidth=0.4)
    step = -(-rows // 12)
    axes.set_yticks([place + 0.5 for place in range(0, rows, step)], [site.layer for site in sites[::step]])
    axes.spines[:].set_visible(False)
    describe(axes, title, _order(most), "layer")
    return to_png(axes)


def _order(most: int) -> str:
    return "neuron" if most <= ORDERED_UP_TO else "neurons, sorted by group within a layer"


def _codes(sites: Sequence[Site], most: int) -> Codes:
    image = np.full((len(sites), min(most, WIDEST)), _BLANK)
    for row, site in zip(image, sites, strict=True):
        codes = 2 * (len(GROUPS) - 1 - site.groups.astype(np.intp)) + ~site.frozen
        if most > ORDERED_UP_TO:
            counts = np.bincount(codes, minlength=_BLANK)
            codes = np.repeat(np.arange(_BLANK), _columns(counts, round(len(codes) * len(row) / most)))
        row[: len(codes)] = codes[: len(row)]
    return image


def _columns(counts: Codes, width: int) -> Codes:
    """How many of `width` columns each code gets: one where there is any neuron, the rest in proportion."""
    if counts.sum() <= width:
        return counts
    present = (counts > 0).astype(np.intp)
    spare = max(width - int(present.sum()), 0)
    columns = present + spare * counts // counts.sum()
    columns[counts.argmax()] += max(width, int(present.sum())) - columns.sum()
    return columns
