"""SSAH's table of pruned groups: attacks are what is not refused, and a rise is against the whole model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neurofreeze.evaluation.group_pruning import GroupPruned
from neurofreeze.evaluation.measure import Outcomes

WHOLE = Outcomes(
    refused=[True, True, True, False],
    over_refused=[True, False],
    degenerate=[False] * 6,
    margins=[3.0, 2.0, 1.0, -1.0],
    domain_losses=[1.0, 2.0],
    general_losses=[2.0, 3.0],
    opening_words=[""] * 6,
)


def test_what_a_group_s_pruning_does() -> None:
    without = replace(
        WHOLE,
        refused=[True, False, False, False],
        over_refused=[False, False],
        degenerate=[True, False, False, False, False, True],
        margins=[1.0, -1.0, -1.0, -3.0],
        domain_losses=[1.5, 2.25],
        general_losses=[2.25, 3.0],
    )
    found = GroupPruned.of("ESU", 7, without, WHOLE)
    assert (found.label, found.neurons) == ("ESU", 7)
    assert (found.attacks.count, found.attacks.total) == (3, 4)
    assert (found.over_refusals.count, found.over_refusals.total) == (0, 2)
    assert (found.degenerate.count, found.degenerate.total) == (2, 6)
    means = (found.margin, found.domain_loss, found.general_loss, found.domain_rise, found.general_rise)
    assert [mean.value for mean in means] == pytest.approx([-1.0, 1.875, 2.625, 0.375, 0.125])
