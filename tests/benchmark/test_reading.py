from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofreeze.benchmark.reading import Point, at_loss, common_loss


def trajectory(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(loss, refused) for loss, refused in pairs]


@given(
    st.lists(st.floats(0.01, 0.5), min_size=1, max_size=6),
    st.lists(st.floats(0, 1), min_size=7, max_size=7),
    st.floats(0, 1),
)
def test_falling_losses_are_read_as_numpy_interpolates(falls: list[float], refused: list[float], share: float) -> None:
    losses = 3 - np.cumsum([0, *falls])
    points = trajectory(*zip(losses.tolist(), refused, strict=False))
    loss = losses[-1] + share * (losses[0] - losses[-1])
    expected = np.interp(loss, losses[::-1], np.array(refused[: len(losses)])[::-1])
    found = at_loss(points, float(loss))
    assert found == pytest.approx(expected, abs=1e-9)


def test_what_is_not_reached_is_not_extrapolated() -> None:
    points = trajectory((2.0, 1.0), (1.5, 0.5))
    assert at_loss(points, 1.4) is None
    assert at_loss(points, 1.5) == 0.5


def test_the_first_time_counts_where_the_loss_rises_again() -> None:
    points = trajectory((2.0, 1.0), (1.5, 0.6), (1.8, 0.4), (1.0, 0.0))
    assert at_loss(points, 1.75) == pytest.approx(0.8)


def test_arms_are_compared_where_all_have_come_down_to() -> None:
    arms = {"none": trajectory((2.0, 1.0), (1.0, 0.2)), "slow": trajectory((2.0, 1.0), (1.6, 0.8))}
    assert common_loss(arms, "none", None) == 1.6


def test_an_arm_that_learned_nothing_does_not_set_the_loss() -> None:
    arms = {"none": trajectory((2.0, 1.0), (1.0, 0.2)), "broken": trajectory((2.0, 1.0), (2.3, 0.0))}
    loss = common_loss(arms, "none", None)
    assert loss == 1.0
    assert at_loss(arms["broken"], loss) is None
    assert common_loss({"broken": arms["broken"]}, "broken", None) is None


def test_a_share_of_what_one_arm_learned() -> None:
    arms = {"none": trajectory((2.0, 1.0), (1.0, 0.2)), "slow": trajectory((2.0, 1.0), (1.6, 0.8))}
    assert common_loss(arms, "none", 0.25) == 1.75
    assert common_loss({"slow": arms["slow"]}, "none", 0.25) is None
