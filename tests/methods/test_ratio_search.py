"""The rule that picks a ratio from a curve, on made-up curves, and the search that makes the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neurofreeze.evaluation.statistics import Mean
from neurofreeze.mask import NeuronMask
from neurofreeze.methods.ratio_search import Curve, Point, Tolerance, choose, search
from neurofreeze.methods.ssah import ESU, EUU, RU, Ratios, group

from .test_ssah import scores

TOLERANCE = Tolerance(margin=0.5, loss=0.1)
GRID = (0.01, 0.02, 0.05, 0.1)


def points(margin_drops: Sequence[float], loss_rises: Sequence[float], half: float = 0.01) -> list[Point]:
    """A curve over GRID with these means, and intervals of `half` on either side."""

    def mean(value: float) -> Mean:
        return Mean(value, 9, value - half, value + half)

    return [
        Point(ratio, 9, mean(drop), mean(rise))
        for ratio, drop, rise in zip(GRID, margin_drops, loss_rises, strict=False)
    ]


@pytest.mark.parametrize(
    ("code", "drops", "rises", "expected"),
    [
        # what must be spared goes past the tolerance at the third ratio
        (ESU, [1, 2, 3, 4], [0.0, 0.05, 0.2, 0.3], 0.02),
        (EUU, [0.0, 0.4, 0.6, 0.7], [1, 2, 3, 4], 0.02),
        (RU, [0.0, 0.4, 0.6, 0.7], [0, 0, 0, 0], 0.02),
        (RU, [0, 0, 0, 0], [0.0, 0.05, 0.2, 0.3], 0.02),
        # exactly the tolerance is within it
        (ESU, [1, 2, 3, 4], [0.0, 0.05, 0.1, 0.3], 0.05),
        # what is spared again after a failure does not count
        (ESU, [1, 2, 3, 4], [0.0, 0.2, 0.0, 0.0], 0.01),
        # the last within the tolerance does not hurt what it is for: the largest that does
        (ESU, [1, 1, 0, 0], [0.0, 0.05, 0.05, 0.3], 0.02),
        # what gets better is spared
        (EUU, [-3, -3, -3, 4], [1, 2, 3, 4], 0.05),
        # equal changes: the largest
        (ESU, [1, 1, 1, 1], [0.0, 0.0, 0.0, 0.3], 0.05),
        # for each group the other measure is free
        (ESU, [9, 9, 9, 9], [0.0, 0.0, 0.0, 0.3], 0.05),
        (EUU, [0.0, 0.0, 0.0, 0.6], [9, 9, 9, 9], 0.05),
    ],
)
def test_the_largest_ratio_up_to_which_what_must_be_spared_is(
    code: int, drops: list[float], rises: list[float], expected: float
) -> None:
    found = choose(code, points(drops, rises), TOLERANCE)
    assert (found.chosen, found.fits, found.why) == (expected, True, "")


@pytest.mark.parametrize(
    ("code", "drops", "rises", "why"),
    [
        (ESU, [1, 2, 3, 4], [0.2, 0.0, 0.0, 0.0], "even the smallest ratio worsens the utility loss by more than"),
        (EUU, [0.6, 0, 0, 0], [1, 2, 3, 4], "even the smallest ratio worsens the refusal margin by more than"),
        (RU, [0, 0, 0, 0], [0.2, 0, 0, 0], "even the smallest ratio worsens the utility loss by more than"),
        (RU, [0.6, 0, 0, 0], [0.2, 0, 0, 0], "worsens the refusal margin and the utility loss by more than"),
        (ESU, [0, -1, 0.005, 3], [0, 0, 0, 0.2], "no ratio within the tolerance worsens the refusal margin beyond"),
        (EUU, [0, 0, 0, 0.6], [0, -1, 0.005, 3], "no ratio within the tolerance worsens the utility loss beyond"),
        (ESU, [1, 2, 3, 4], [float("nan")] * 4, "even the smallest ratio worsens the utility loss by more than"),
    ],
)
def test_where_no_ratio_fits_the_smallest_is_taken_and_the_reason_told(
    code: int, drops: list[float], rises: list[float], why: str
) -> None:
    found = choose(code, points(drops, rises), TOLERANCE)
    assert (found.chosen, found.fits) == (GRID[0], False)
    assert why in found.why
    assert "no ratio fits, the smallest is taken: " in str(found)


@pytest.mark.parametrize("code", [ESU, EUU, RU])
def test_where_all_fit_the_largest_is_taken_and_said_to_be_the_grids(code: int) -> None:
    changes = {ESU: (1.0, 0.0), EUU: (0.0, 1.0), RU: (0.0, 0.0)}[code]
    found = choose(code, points(*([change] * 4 for change in changes)), TOLERANCE)
    assert (found.chosen, found.fits) == (GRID[-1], True)
    assert "a larger one may fit too" in found.why


def test_one_prompt_says_nothing_beyond_chance() -> None:
    point = Point(0.01, 9, Mean.of([5.0]), Mean.of([0.0]))
    assert not choose(ESU, [point], TOLERANCE).fits


def test_a_curve_survives_json() -> None:
    curve = choose(ESU, points([1, 2, 3, 4], [0.0, 0.05, 0.2, 0.3]), TOLERANCE)
    assert Curve.from_dict(asdict(curve)) == curve
    assert str(curve) == "ESU 2 %"
    assert curve.tolerance == TOLERANCE


class Measure:
    """Notes which masks it is asked for; every mask of `group` worsens margin and loss by what `worse` says."""

    def __init__(self, worse: dict[str, tuple[float, float]]) -> None:
        self.worse = worse
        self.masks: list[NeuronMask] = []

    def __call__(self, mask: NeuronMask | None) -> Any:
        drop, rise = (0.0, 0.0) if mask is None else self.worse[mask.config.strategy["group"]]
        if mask is not None:
            self.masks.append(mask)
        noise = np.array([0.0, 0.1, 0.2])
        return pruned(5 - drop + noise, 2 + rise + noise)


def pruned(margins: Any, losses: Any) -> Any:
    def changes(values: Any, others: Any) -> Mean:
        return Mean.of(list(values - others))

    return SimpleNamespace(
        margins=margins,
        losses=losses,
        margin_drop=lambda whole: changes(whole.margins, margins),
        loss_rise=lambda whole: changes(losses, whole.losses),
    )


def test_what_is_pruned_is_what_the_groups_will_be() -> None:
    safety, utility = scores(1), scores(2)
    measure = Measure({"ESU": (1.0, 0.0), "EUU": (0.0, 1.0), "RU": (0.0, 0.0)})
    grid = [0.05, 0.1, 0.2]
    ratios, curves = search(safety, utility, measure, grid, TOLERANCE)
    assert ratios == Ratios(0.2, 0.2, 0.2)
    assert [curve.group for curve in curves] == ["ESU", "EUU", "RU"]
    expected = [
        *(group(safety, utility, Ratios(ratio, 0, 0)).mask(ESU) for ratio in grid),
        *(group(safety, utility, Ratios(0.2, ratio, 0)).mask(EUU) for ratio in grid),
        *(group(safety, utility, Ratios(0.2, 0.2, ratio)).mask(RU) for ratio in grid),
    ]
    assert measure.masks == expected
    assert [point.neurons for curve in curves for point in curve.points] == [mask.count for mask in expected]
    final = group(safety, utility, ratios)
    assert [measure.masks[place] for place in (2, 5, 8)] == [final.mask(code) for code in (ESU, EUU, RU)]


def test_a_group_that_fits_nowhere_leaves_the_others_their_room() -> None:
    measure = Measure({"ESU": (0.0, 0.0), "EUU": (0.0, 1.0), "RU": (9.0, 9.0)})
    ratios, curves = search(scores(1), scores(2), measure, [0.05, 0.1], TOLERANCE)
    assert ratios == Ratios(0.05, 0.1, 0.05)
    assert [curve.fits for curve in curves] == [False, True, False]


def test_ratios_that_would_leave_no_complex_units_are_not_tried() -> None:
    measure = Measure({"ESU": (1.0, 0.0), "EUU": (0.0, 1.0), "RU": (0.0, 0.0)})
    ratios, curves = search(scores(1), scores(2), measure, [0.2, 0.3, 0.5, 0.6, 0.9], TOLERANCE)
    assert [[point.ratio for point in curve.points] for curve in curves] == [[0.2, 0.3, 0.5], [0.2], [0.2]]
    assert ratios == Ratios(0.5, 0.2, 0.2)
