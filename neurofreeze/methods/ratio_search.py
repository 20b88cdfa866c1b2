"""SSAH's ratios found by pruning: how large a group can be before removing it hurts what it should not touch.

The paper sweeps the ratio of each group and keeps the one at which pruning hurts only safety (ESU), only utility (EUU)
or neither (RU); it gives no rule beyond that. Ours, over a grid of growing ratios, with the mean change of each measure
against the whole model, prompt by prompt: a group's ratio is the largest

1. up to which, at this ratio and every smaller one of the grid, what the group must spare worsens by at most a
   tolerance: the loss on utility data for ESU, the refusal margin for EUU, both for RU; and
2. at which what the group is for worsens beyond chance over prompts (the 95 % interval lies above zero): the margin
   for ESU, the loss for EUU.

Where no ratio does both, the smallest of the grid is taken, and the curve says which of the two failed. Groups are
searched in the order in which `group` fills them, each beside the ratios found before it, so that what is pruned is
exactly the group that results. A ratio that would leave no room for the other groups is not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from neurofreeze.evaluation.pruning import Pruned
from neurofreeze.evaluation.statistics import Mean
from neurofreeze.mask import NeuronMask
from neurofreeze.methods.ssah import ESU, EUU, GROUPS, RU, Ratios, group
from neurofreeze.strategies.scores import NeuronScores


@dataclass(frozen=True)
class Tolerance:
    """By how much, in nats, the mean refusal margin may fall and the mean loss rise where they must be spared."""

    margin: float = 0.5
    loss: float = 0.1


@dataclass(frozen=True)
class Point:
    """A group pruned at one ratio: mean paired changes against the whole model, in nats."""

    ratio: float
    neurons: int
    margin_drop: Mean
    loss_rise: Mean


@dataclass(frozen=True)
class Curve:
    """What pruning a group at each ratio did, and the ratio that was taken.

    Attributes:
        group: "ESU", "EUU" or "RU".
        points: by growing ratio.
        tolerance: for what the group must spare.
        chosen: the ratio taken.
        fits: whether it follows the rule; False where no ratio does and the smallest was taken.
        why: in words, why none fits, or that a larger ratio than the grid's may; empty otherwise.
    """

    group: str
    points: list[Point]
    tolerance: Tolerance
    chosen: float
    fits: bool
    why: str

    def __str__(self) -> str:
        fits = "" if self.fits else "no ratio fits, the smallest is taken: "
        return f"{self.group} {100 * self.chosen:g} %" + (f" ({fits}{self.why})" if self.why else "")

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Curve:
        """The inverse of dataclasses.asdict."""
        points = [
            Point(p["ratio"], p["neurons"], Mean(**p["margin_drop"]), Mean(**p["loss_rise"])) for p in found["points"]
        ]
        return cls(**{**found, "points": points, "tolerance": Tolerance(**found["tolerance"])})


@dataclass(frozen=True)
class _Aim:
    field: str  # of Ratios
    spares: tuple[str, ...]
    hurts: str | None


_AIMS = {
    ESU: _Aim("exclusive_safety", spares=("loss_rise",), hurts="margin_drop"),
    EUU: _Aim("exclusive_utility", spares=("margin_drop",), hurts="loss_rise"),
    RU: _Aim("redundant", spares=("margin_drop", "loss_rise"), hurts=None),
}
_NAMES = {"margin_drop": "refusal margin", "loss_rise": "utility loss"}


def choose(code: int, points: Sequence[Point], tolerance: Tolerance) -> Curve:
    """Apply the rule to one group's curve.

    Args:
        code: ESU, EUU or RU.
        points: at least one, by growing ratio.
        tolerance: for what the group must spare.
    """
    aim, limits = _AIMS[code], {"margin_drop": tolerance.margin, "loss_rise": tolerance.loss}

    def spares(point: Point) -> bool:
        return all(getattr(point, what).value <= limits[what] for what in aim.spares)

    def hurts(point: Point) -> bool:
        return aim.hurts is None or bool(getattr(point, aim.hurts).low > 0)

    spared = list(takewhile(spares, points))
    fitting = [point for point in spared if hurts(point)]
    if fitting:
        why = "the largest ratio tried; a larger one may fit too" if fitting[-1] is points[-1] else ""
    elif aim.hurts is None or not spared:
        worse = (_NAMES[what] for what in aim.spares if not getattr(points[0], what).value <= limits[what])
        why = f"even the smallest ratio worsens the {' and the '.join(worse)} by more than the tolerance"
    else:
        why = f"no ratio within the tolerance worsens the {_NAMES[aim.hurts]} beyond chance"
    taken = fitting[-1] if fitting else points[0]
    return Curve(GROUPS[code], list(points), tolerance, taken.ratio, bool(fitting), why)


def search(
    safety: NeuronScores,
    utility: NeuronScores,
    measure: Callable[[NeuronMask | None], Pruned],
    grid: Sequence[float],
    tolerance: Tolerance,
) -> tuple[Ratios, list[Curve]]:
    """Find all three ratios.

    Args:
        safety: I_S.
        utility: I_U.
        measure: the model without the neurons of a mask (None: the whole model), always on the same calibration
            prompts, never on evaluation ones.
        grid: growing ratios in (0, 1), the smallest below a third.
        tolerance: for what a group must spare.
    """
    whole = measure(None)
    ratios: dict[str, float] = dict.fromkeys(asdict(Ratios()), 0.0)
    curves = []
    for later, (code, aim) in zip((2, 1, 0), _AIMS.items(), strict=True):
        taken = sum(ratios.values()) + later * grid[0]
        points = []
        for ratio in grid:
            if round(taken + ratio, 9) < 1:  # else nothing would be left for complex units
                mask = group(safety, utility, Ratios(**{**ratios, aim.field: ratio})).mask(code)
                pruned = measure(mask)
                points.append(Point(ratio, mask.count, pruned.margin_drop(whole), pruned.loss_rise(whole)))
        curves.append(choose(code, points, tolerance))
        ratios[aim.field] = curves[-1].chosen
    return Ratios(**ratios), curves
