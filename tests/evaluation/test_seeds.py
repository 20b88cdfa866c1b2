"""Tests over seeds against enumeration, in whole numbers where ties matter, and against BCa written out."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product
from math import comb, isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from neurofreeze.evaluation.seeds import SeedTest, against, holm

# Refusals out of 80 in two arms, over 8 seeds.
KEPT, PLAIN = [71, 64, 70, 77, 58, 69, 66, 73], [60, 66, 52, 71, 58, 49, 61, 70]


def by_seed(counts: list[int], total: int = 80) -> dict[int, float]:
    return {seed: count / total for seed, count in enumerate(counts)}


def flips(differences: list[int]) -> Fraction:
    """The share of all sign flips whose sum is at least as far from 0, in whole numbers."""
    flipped = product(*((d, -d) for d in differences))
    sums = [abs(sum(chosen)) for chosen in flipped]
    return Fraction(sum(s >= abs(sum(differences)) for s in sums), len(sums))


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), min_size=1, max_size=9))
def test_permutation_counts_every_sign_flip_and_every_tie(pairs: list[tuple[int, int]]) -> None:
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    found = SeedTest.of(by_seed(first), by_seed(second)).permutation_p
    assert found == pytest.approx(float(flips([a - b for a, b in pairs])), abs=1e-12)


def test_permutation_counts_ties_that_differ_in_the_last_bit() -> None:
    assert (
        SeedTest.of(by_seed([3, 5, 2, 3, 0]), by_seed([0, 4, 0, 4, 5])).permutation_p == flips([3, 1, 2, -1, -5]) == 1
    )


def test_permutation_of_more_seeds_is_drawn_and_repeatable() -> None:
    pairs = np.random.default_rng(3).integers(0, 80, (18, 2)).tolist()
    first, second = (by_seed([pair[side] for pair in pairs]) for side in (0, 1))
    found = SeedTest.of(first, second).permutation_p
    assert found == pytest.approx(float(flips([a - b for a, b in pairs])), abs=0.01)
    assert found == SeedTest.of(first, second).permutation_p != SeedTest.of(first, second, rng=1).permutation_p


def test_sign_test_is_the_binomial_one_without_ties() -> None:
    above, below = 6, 1  # of KEPT - PLAIN; one seed is equal
    expected = 2 * sum(comb(above + below, k) for k in range(below + 1)) / 2 ** (above + below)
    assert SeedTest.of(by_seed(KEPT), by_seed(PLAIN)).sign_p == pytest.approx(expected)
    assert SeedTest.of(by_seed(KEPT), by_seed(KEPT)).sign_p == 1


@pytest.mark.parametrize("seeds", [1, 2, 5, 6, 8])
def test_no_test_of_so_few_seeds_can_be_surer_than_this(seeds: int) -> None:
    found = SeedTest.of(dict.fromkeys(range(seeds), 1.0), dict.fromkeys(range(seeds), 0.0))
    assert found.sign_p == found.permutation_p == 2 / 2**seeds


def test_bootstrap_interval_is_bca_over_seeds() -> None:
    differences = (np.array(KEPT) - np.array(PLAIN)) / 80
    rng = np.random.default_rng(7)
    means = rng.choice(differences, (200_000, len(differences))).mean(1)
    bias = ndtri(((means < differences.mean()).mean() + (means <= differences.mean()).mean()) / 2)
    left_out = np.array([np.delete(differences, i).mean() for i in range(len(differences))])
    pull = left_out.mean() - left_out
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    z = bias + ndtri([0.025, 0.975])
    expected = np.quantile(means, ndtr(bias + z / (1 - acceleration * z)))
    found = SeedTest.of(by_seed(KEPT), by_seed(PLAIN))
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=3e-3)
    assert found.low > 0
    backwards = dict(reversed(by_seed(KEPT).items()))
    assert found == SeedTest.of(backwards, by_seed(PLAIN)), "resampling is seeded, whatever the order"


def test_difference_is_paired_by_seed_whatever_the_order() -> None:
    first, second = {3: 0.9, 1: 0.5, 2: 0.75}, {1: 0.25, 2: 0.5, 3: 0.4}
    found = SeedTest.of(first, second)
    assert found.difference.value == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    assert found.difference.total == 3
    assert found.difference.high == pytest.approx(1 / 3 + 4.302652729911275 / 12)  # t of 2 degrees of freedom


def test_seeds_that_agree_exactly_have_an_interval_of_no_width_and_one_seed_has_none() -> None:
    found = SeedTest.of({0: 1.5, 1: 1.5, 2: 1.5}, {0: 1.0, 1: 1.0, 2: 1.0})
    assert (found.low, found.high) == (0.5, 0.5)
    single = SeedTest.of({0: 1.0}, {0: 0.0})
    assert isnan(single.low)
    assert isnan(single.high)


@pytest.mark.parametrize(("first", "second"), [({0: 1.0}, {1: 1.0}), ({0: 1.0, 1: 1.0}, {0: 1.0}), ({}, {})])
def test_arms_with_other_seeds_are_refused(first: dict[int, float], second: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="expected the same, at least one"):
        SeedTest.of(first, second)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p_values: list[float]) -> None:
    """Each hypothesis is as sure as the least sure of all intersections that it is part of."""
    names = [str(index) for index in range(len(p_values))]
    each = dict(zip(names, p_values, strict=True))
    sets = [set(chosen) for size in range(1, len(names) + 1) for chosen in combinations(names, size)]
    expected = {
        name: max(min(1.0, len(chosen) * min(each[n] for n in chosen)) for chosen in sets if name in chosen)
        for name in names
    }
    assert holm(each) == pytest.approx(expected)
    assert list(holm(each)) == names


def test_every_arm_is_compared_with_the_baseline_and_corrected() -> None:
    arms = {"none": by_seed(PLAIN), "safety": by_seed(KEPT), "random": by_seed([p + 1 for p in PLAIN])}
    found = against(arms, "none")
    assert list(found) == ["safety", "random"]
    tests = {arm: SeedTest.of(values, arms["none"]) for arm, values in arms.items() if arm != "none"}
    assert {arm: test for arm, (test, _) in found.items()} == tests
    assert {arm: p for arm, (_, p) in found.items()} == holm({arm: test.permutation_p for arm, test in tests.items()})
    assert found["random"][1] == 2 * found["random"][0].permutation_p
