"""Paired comparisons against scipy and by hand, and the judgement on every outcome."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from neurofreeze.guard.audit.changes import changes

from .readings import one, reading, state


def test_comparisons_are_paired_and_corrected_for_the_number_of_states() -> None:
    found = changes(
        reading(), [state("a"), state("b")], {"a": reading(8, 4.0, kl=0.5), "b": reading(18, 6.0, kl=0.1)}, 0.5
    )
    assert (found[0].refusals_test.only_first, found[0].refusals_test.only_second) == (10, 0)
    assert found[0].p_value == pytest.approx(2 * stats.binomtest(10, 10).pvalue)
    assert found[1].p_value == 1
    assert found[0].margin_change.value == pytest.approx(-2)
    assert [mean.value for mean in found[0].kl_harmful] == pytest.approx([1.5])  # one answer has a second token


def test_probe_margins_are_told_in_the_original_s_distance() -> None:
    found = one(replace(reading(), probe_harmful=[0.5, 2.5], probe_harmless=[-2.0, -4.0]))
    assert found.separation == pytest.approx((1.5 + 3) / 6)
    assert found.harmful_shift.value == pytest.approx(-1.5 / 6)
    assert found.harmless_shift.value == 0


def test_the_interval_of_a_margin_s_change_is_student_s() -> None:
    other = reading()
    margins = [6.0 - 0.2 * place for place in range(20)]
    found = one(replace(other, outcomes=replace(other.outcomes, margins=margins))).margin_change
    differences = np.subtract(margins, other.outcomes.margins)
    low, high = stats.t.interval(0.95, 19, differences.mean(), stats.sem(differences))
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("found", "judgement"),
    [
        (reading(), "no change"),
        (reading(kl=1e-9), "kept"),
        (reading(18, 5.8), "kept"),  # surely lower, by less than the tolerance
        (reading(18, 5.0), "erodes"),
        (reading(8, 6.0), "erodes"),
        (reading(20, 7.0), "strengthens"),
        (reading(8, 7.0), "mixed"),
        (reading(15, 6.0), "kept"),  # 3 of 20 lost: p = 0.25
    ],
)
def test_the_judgement(found: object, judgement: str) -> None:
    assert one(found).judgement == judgement  # type: ignore[arg-type]


def test_what_the_prompts_cannot_show_is_not_called_kept() -> None:
    scattered = reading()
    margins = [margin + (3 if place % 2 else -3) for place, margin in enumerate(scattered.outcomes.margins)]
    found = one(replace(scattered, outcomes=replace(scattered.outcomes, margins=margins)))
    assert found.margin_change.low < -0.5
    assert found.judgement == "not shown"


def test_broken_answers_are_told_apart() -> None:
    assert not one(reading(garbage=4)).broken
    assert one(reading(garbage=5)).broken
    assert one(reading(loss=2.6)).broken
    assert not one(reading(5, -3.0)).broken


def test_a_control_is_compared_prompt_by_prompt() -> None:
    states = [state("top", control="random", neurons=5, x=0.1), state("random", neurons=5, x=0.1, series="random 0")]
    found = changes(reading(), states, {"top": reading(4), "random": reading(17)}, 0.5)
    assert found[0].versus_control is not None
    assert (found[0].versus_control.only_first, found[0].versus_control.only_second) == (13, 0)
    assert math.isclose(found[0].versus_control.p_value, stats.binomtest(13, 13).pvalue)
    assert found[1].versus_control is None
