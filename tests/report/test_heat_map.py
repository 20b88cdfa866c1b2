"""What the heat map promises about its columns."""

from __future__ import annotations

import numpy as np
import pytest

from neurofreeze.report.content import Site
from neurofreeze.report.figures import heat_map as heat_map_png
from neurofreeze.report.figures.heat_map import WIDEST, _codes, _columns


@pytest.mark.parametrize(
    ("counts", "width"),
    [
        ([1, 29_999, 0, 0, 0, 0, 0, 0], 1000),
        ([45, 45, 2, 2, 2, 2, 1, 1], 10),
        ([900, 1, 900, 1, 900, 1, 900, 1], 1000),
        ([5, 5, 5, 5, 5, 5, 5, 5], 8),
    ],
)
def test_every_group_that_occurs_is_seen_and_the_row_stays_full(counts: list[int], width: int) -> None:
    columns = _columns(np.array(counts), width)
    assert columns.sum() == width
    assert ((columns > 0) == (np.array(counts) > 0)).all()


def test_columns_follow_the_shares() -> None:
    columns = _columns(np.array([3000, 0, 0, 27_000, 0, 0, 0, 0]), 1000)
    assert columns[0] == pytest.approx(100, abs=2)


def test_rows_are_sorted_with_frozen_safety_units_first() -> None:
    groups = np.array([0, 3, 3, 2] * 20, np.uint8)
    frozen = np.array([False, True, False, False] * 20)
    [row] = _codes([Site("layers.0.mlp", "mlp", 0, groups, frozen)], 80)
    assert row.tolist() == [0] * 20 + [1] * 20 + [3] * 20 + [7] * 20


def test_few_neurons_stay_where_they_are() -> None:
    groups = np.array([0, 3, 2], np.uint8)
    [row] = _codes([Site("layers.0.attention", "attention", 0, groups, np.array([True, True, False]))], 3)
    assert row.tolist() == [6, 0, 3]


def test_a_narrow_layer_beside_a_wide_one_ends_early() -> None:
    def site(neurons: int) -> Site:
        return Site("layers.0.mlp", "mlp", 0, np.zeros(neurons, np.uint8), np.zeros(neurons, bool))

    image = _codes([site(5000), site(10_000)], 10_000)
    assert image.shape == (2, WIDEST)
    assert [(row == 8).sum() for row in image] == [WIDEST // 2, 0]


def test_the_same_content_gives_the_same_picture() -> None:
    site = Site("layers.0.mlp", "mlp", 0, np.zeros(70, np.uint8), np.zeros(70, bool))
    assert heat_map_png("MLP", [site], 4) == heat_map_png("MLP", [site], 4)
