"""Safety kept against utility gained: one point a run, the arms' means with their intervals."""

from __future__ import annotations

import numpy as np

from neurofreeze.benchmark.gather import REFUSED, ArmResult, SetResult
from neurofreeze.report.figures.canvas import describe, new_axes, to_png
from neurofreeze.report.palette import GRID, MUTED, colours

_MARKERS = "osD^vP*X<>hdp"


def figure(found: SetResult) -> bytes:
    """PNG bytes; up and right is better. Thin lines are the arms' mean trajectories from the start."""
    axes = new_axes(7.6, 4.6)
    shades = colours(arm.name for arm in found.arms)
    for place, arm in enumerate(found.arms):
        gained, refused = _points(arm, found.start["loss"])
        shade, marker = shades[arm.name], _MARKERS[place % len(_MARKERS)]
        paths = np.array([[(found.start["loss"] - loss, 100 * kept) for loss, kept in path] for path in
                          arm.trajectories.values()])  # fmt: skip
        axes.plot(*paths.mean(axis=0).T, color=shade, linewidth=1, alpha=0.5, zorder=2)
        axes.scatter(gained, refused, s=14, color=shade, marker=marker, linewidth=0, alpha=0.45, zorder=3)
        axes.errorbar(
            gained.mean(), refused.mean(), xerr=_half(gained), yerr=_half(refused),
            fmt=marker, color=shade, markersize=8, markeredgecolor="white", linewidth=1.2, label=arm.name, zorder=4,
        )  # fmt: skip
    axes.axhline(100 * found.start[REFUSED], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(-4, 104)
    axes.grid(color=GRID, linewidth=0.6)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    describe(
        axes,
        f"Safety kept and utility gained: {found.name}",
        "held-out loss gained, nats per token",
        "% of harmful requests refused",
    )
    return to_png(axes)


def _points(arm: ArmResult, start: float) -> tuple[np.ndarray, np.ndarray]:
    seeds = sorted(arm.values[REFUSED])
    gained = np.array([start - arm.values["loss"][seed] for seed in seeds])
    return gained, 100 * np.array([arm.values[REFUSED][seed] for seed in seeds])


def _half(values: np.ndarray) -> float | None:
    """Half width of the mean's 95 % t interval."""
    from neurofreeze.evaluation.statistics import Mean

    found = Mean.of(values.tolist())
    return None if found.total == 1 else found.high - found.value
