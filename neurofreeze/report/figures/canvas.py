"""A figure to draw on and its way to PNG."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from neurofreeze.report.palette import GRID, INK, MUTED

DPI = 200


def new_axes(width: float, height: float) -> Any:
    """The axes of a new white figure of `width` x `height` inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.set_axisbelow(True)
    return axes


def describe(axes: Any, title: str, x: str = "", y: str = "") -> None:
    """Title on the left, axis labels in the muted colour."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    axes.set_xlabel(x, fontsize=9, color=MUTED)
    axes.set_ylabel(y, fontsize=9, color=MUTED)


def to_png(axes: Any) -> bytes:
    """The figure of `axes` as PNG bytes."""
    # Labels come from users: a dollar sign in one is no formula.
    for text in axes.figure.findobj(Text):
        text.set_parse_math(False)
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
