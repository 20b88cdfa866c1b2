"""Intervals and paired tests against their formulas written out, and against known values."""

from __future__ import annotations

from math import comb, isnan, sqrt

import pytest

from neurofreeze.evaluation.statistics import Mean, PairedTest, Rate

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


def outcomes(count: int, total: int) -> list[bool]:
    return [True] * count + [False] * (total - count)


def wilson(count: int, total: int) -> tuple[float, float]:
    p = count / total
    middle = (p + Z**2 / (2 * total)) / (1 + Z**2 / total)
    half = Z / (1 + Z**2 / total) * sqrt(p * (1 - p) / total + Z**2 / (4 * total**2))
    return middle - half, middle + half


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (3, 10), (40, 80), (79, 80), (123, 1000)])
def test_rate_is_wilson_s_interval(count: int, total: int) -> None:
    rate = Rate.of(outcomes(count, total))
    low, high = wilson(count, total)
    assert (rate.count, rate.total, rate.value) == (count, total, count / total)
    assert rate.low == pytest.approx(low, abs=1e-12)
    assert rate.high == pytest.approx(high, abs=1e-12)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_rate_has_the_published_bounds(count: int, total: int, low: float, high: float) -> None:
    # The last two: Newcombe 1998, table I, method 3.
    rate = Rate.of(outcomes(count, total))
    assert (round(rate.low, 4), round(rate.high, 4)) == (low, high)


def test_rate_reads_as_count_and_interval() -> None:
    assert str(Rate.of(outcomes(58, 64))) == "58/64 (81%-96%)"


def test_mean_is_student_s_interval() -> None:
    mean = Mean.of([2.0, 4.0, 4.0, 5.0, 10.0])
    half = 2.7764451051977987 * 3.0 / sqrt(5)  # t of 4 degrees of freedom; the sample's deviation is 3
    assert (mean.value, mean.total) == (5.0, 5)
    assert mean.low == pytest.approx(5 - half)
    assert mean.high == pytest.approx(5 + half)
    assert str(mean) == "5.000 (1.275 to 8.725)"


def test_a_single_value_has_no_interval() -> None:
    mean = Mean.of([1.5])
    assert mean.value == 1.5
    assert isnan(mean.low)
    assert isnan(mean.high)


def arms(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(("b", "c"), [(12, 3), (3, 12), (1, 0), (5, 5), (6, 5), (30, 9), (0, 8)])
def test_paired_test_is_mcnemar_s_exact_one(b: int, c: int) -> None:
    n = b + c
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n)
    found = PairedTest.of(*arms(20, b, c, 7))
    assert (found.only_first, found.only_second) == (b, c)
    assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_paired_test_ignores_pairs_that_agree() -> None:
    assert PairedTest.of(*arms(0, 12, 3, 0)) == PairedTest.of(*arms(50, 12, 3, 500))
    assert PairedTest.of(*arms(0, 12, 3, 0)).p_value == pytest.approx(0.03515625)


def test_without_discordant_pairs_p_is_one() -> None:
    assert PairedTest.of(*arms(4, 0, 0, 4)) == PairedTest(0, 0, 1.0)


def test_paired_test_compares_prompt_by_prompt() -> None:
    assert PairedTest.of([True, False, True], [False, True, True]) == PairedTest(1, 1, 1.0)


def test_arms_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        PairedTest.of([True], [True, False])
