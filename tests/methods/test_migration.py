"""Transitions between groups, against counting pairs one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from neurofreeze.methods.migration import Transitions

SITES = {"layers.0.mlp": 70, "layers.0.attention": 6, "layers.1.mlp": 70}


def codes(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.choice(4, size, p=[0.2, 0.2, 0.5, 0.1]).astype(np.uint8) for name, size in SITES.items()}


@pytest.mark.parametrize("some", [False, True])
def test_pairs_are_counted_from_and_to(some: bool) -> None:
    before, after = codes(0), codes(1)
    chosen = {name: np.random.default_rng(2).random(size) < 0.3 for name, size in SITES.items()} if some else None
    found = Transitions.between("these", before, after, chosen)
    pairs = Counter(
        (int(before[name][i]), int(after[name][i]))
        for name, size in SITES.items()
        for i in range(size)
        if chosen is None or chosen[name][i]
    )
    assert found.counts == [[pairs[old, new] for new in range(4)] for old in range(4)]
    assert found.total == sum(pairs.values())
    assert found.moved == sum(count for (old, new), count in pairs.items() if old != new) > 0


def test_what_chance_would_move_is_that_of_shuffled_groups() -> None:
    before, after = codes(0), codes(1)
    found = Transitions.between("all", before, after)
    rng, old, new = np.random.default_rng(3), *(np.concatenate(list(c.values())) for c in (before, after))
    shuffled = np.mean([(old != rng.permutation(new)).mean() for _ in range(2000)])
    assert found.by_chance == pytest.approx(shuffled, abs=0.005)


def test_nothing_moves_between_equal_groups() -> None:
    found = Transitions.between("all neurons", codes(0), codes(0))
    assert found.moved == 0
    assert str(found).startswith("all neurons: 0 of 146 moved (0.0%, by chance ")


def test_no_neurons_are_said_to_be_none() -> None:
    nothing = {name: np.zeros(size, dtype=bool) for name, size in SITES.items()}
    assert str(Transitions.between("frozen neurons", codes(0), codes(1), nothing)) == "frozen neurons: none"
