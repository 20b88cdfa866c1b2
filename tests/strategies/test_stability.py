"""Overlaps of masks, against counting and against random masks drawn many times."""

from __future__ import annotations

import numpy as np
import pytest

from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.stability import Overlap, halves, mean, stability
from tests import tiny


@pytest.fixture(scope="module")
def neuron_map() -> NeuronMap:
    return NeuronMap.of(tiny.config())


def test_the_overlap_is_counted_neuron_by_neuron(neuron_map: NeuronMap) -> None:
    a, b = (NeuronMask.random(neuron_map, 0.4, seed) for seed in (0, 1))
    pairs = [(x, y) for name in a.bits for x, y in zip(a.bits[name], b.bits[name], strict=True)]
    assert Overlap.of(a, b).jaccard == sum(x and y for x, y in pairs) / sum(x or y for x, y in pairs)
    assert Overlap.of(a, a).jaccard == 1
    assert Overlap.of(a, ~a).jaccard == 0


def test_chance_is_what_random_masks_of_the_sizes_have(neuron_map: NeuronMap) -> None:
    a, b = NeuronMask.random(neuron_map, 0.5, 0), NeuronMask.random(neuron_map, 0.2, 1)
    drawn = [
        Overlap.of(NeuronMask.random_like(a, seed), NeuronMask.random_like(b, seed + 1000)).jaccard
        for seed in range(400)
    ]
    assert Overlap.of(a, b).by_chance == pytest.approx(np.mean(drawn), abs=3 * np.std(drawn) / 20 + 0.002)


def test_two_empty_masks_overlap_wholly(neuron_map: NeuronMap) -> None:
    none = NeuronMask.none(neuron_map)
    assert Overlap.of(none, none) == Overlap(1.0, 1.0)


def test_halves_are_disjoint_ordered_and_make_up_each_set() -> None:
    sets = {"safety": list(range(11)), "utility": list("abcdef")}
    first, second = halves(sets, seed=3)
    for name, values in sets.items():
        assert sorted(first[name] + second[name]) == values
        assert first[name] == sorted(first[name])
        assert len(first[name]) == len(values) // 2
    assert halves(sets, seed=3) == (first, second)
    assert halves(sets, seed=4) != (first, second)


def test_stability_compares_what_is_chosen_on_the_two_halves(neuron_map: NeuronMap) -> None:
    steady = NeuronMask.random(neuron_map, 0.3, 0)
    seen: list[tuple[int, ...]] = []

    def choose(half: dict[str, list[int]]) -> NeuronMask:
        seen.append(tuple(half["safety"]))
        return steady

    found = stability(choose, {"safety": list(range(10))}, splits=3, seed=0)
    assert [overlap.jaccard for overlap in found] == [1.0] * 3
    assert len(set(seen)) == 6
    assert mean(found).by_chance == pytest.approx(found[0].by_chance)
