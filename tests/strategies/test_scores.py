"""NeuronScores: finite, combined neuron by neuron, and cut at a share of each kind."""

from __future__ import annotations

import numpy as np
import pytest

from neurofreeze.errors import MaskError, NeuroFreezeError
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import NeuronScores
from neurofreeze.strategies.scores import kinds, split
from tests import tiny

MAP = NeuronMap.of(tiny.config("llama"))  # 2 layers of 6 heads and 70 MLP neurons
SITES = {"layers.0.attention": 6, "layers.0.mlp": 70, "layers.1.attention": 6, "layers.1.mlp": 70}


def scores(seed: int = 0, **changes: np.ndarray) -> NeuronScores:
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(size=neurons).astype(np.float32) for name, neurons in SITES.items()}
    return NeuronScores(MAP, {**values, **changes}, {"name": "test"})


def test_the_map_is_what_these_tests_assume() -> None:
    assert {name: site.neurons for name, site in MAP.sites.items()} == SITES


@pytest.mark.parametrize(
    ("fraction", "heads", "mlp"), [(0.1, 1, 14), (0.25, 3, 35), (0.5, 6, 70), (1.0, 12, 140), (1e-6, 0, 0)]
)
def test_top_takes_the_share_of_each_kind(fraction: float, heads: int, mlp: int) -> None:
    bits = scores().top(fraction).bits
    assert bits["layers.0.attention"].sum() + bits["layers.1.attention"].sum() == heads
    assert bits["layers.0.mlp"].sum() + bits["layers.1.mlp"].sum() == mlp


def test_top_takes_the_highest_of_all_layers_together() -> None:
    found = scores()
    bits = found.top(0.25).bits
    for kind in ("attention", "mlp"):
        names = [f"layers.{layer}.{kind}" for layer in range(2)]
        chosen = [float(v) for n in names for v, bit in zip(found.values[n], bits[n], strict=True) if bit]
        left = [float(v) for n in names for v, bit in zip(found.values[n], bits[n], strict=True) if not bit]
        assert min(chosen) > max(left)


def test_above_does_not_take_what_equals_the_threshold() -> None:
    high = np.zeros(70, dtype=np.float32)
    high[[3, 5]] = 1, 2
    bits = scores(**{"layers.0.mlp": high}).above(1).bits["layers.0.mlp"]
    assert np.flatnonzero(bits).tolist() == [5]


def test_standardized_scores_have_mean_0_and_deviation_1_at_every_site() -> None:
    shifted = {name: 5 + 3 * values for name, values in scores().values.items()}
    found = scores(**shifted).standardized()
    for name, values in scores().values.items():
        z = (values - values.mean(dtype=np.float64)) / values.std(dtype=np.float64)
        np.testing.assert_allclose(found.values[name], z, rtol=1e-5, atol=1e-5)
    constant = scores(**{"layers.0.mlp": np.full(70, 4, dtype=np.float32)}).standardized()
    assert not constant.values["layers.0.mlp"].any()


def test_heads_do_not_compete_with_mlp_neurons() -> None:
    high = {name: np.full(70, 100, dtype=np.float32) for name in SITES if name.endswith("mlp")}
    bits = scores(**high).top(0.5).bits
    assert bits["layers.0.attention"].sum() + bits["layers.1.attention"].sum() == 6


def test_equal_scores_are_taken_in_the_order_of_layers_then_neurons() -> None:
    equal = {name: np.zeros(neurons, dtype=np.float32) for name, neurons in SITES.items()}
    bits = scores(**equal).top(0.6).bits
    assert bits["layers.0.mlp"].all()
    assert bits["layers.1.mlp"].tolist() == [True] * 14 + [False] * 56
    assert bits["layers.0.attention"].all()
    assert bits["layers.1.attention"].tolist() == [True] + [False] * 5


def test_ties_among_other_scores_are_broken_by_order_too() -> None:
    rounded = {name: np.round(values).astype(np.float32) for name, values in scores().values.items()}
    bits = scores(**rounded).top(0.3).bits
    names = ["layers.0.mlp", "layers.1.mlp"]
    neurons = [(name, index) for name in names for index in range(70)]
    expected = sorted(neurons, key=lambda neuron: -float(rounded[neuron[0]][neuron[1]]))[:42]
    assert {(name, int(index)) for name in names for index in np.flatnonzero(bits[name])} == set(expected)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(MaskError, match="expected a number in"):
        scores().top(fraction)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_names_its_site(value: float) -> None:
    broken = np.zeros(70, dtype=np.float32)
    broken[41] = value
    with pytest.raises(NeuroFreezeError, match=r"neuron 41 of layers\.1\.mlp is -?(nan|inf)"):
        scores(**{"layers.1.mlp": broken})


def test_an_overflow_of_the_sum_is_noticed() -> None:
    large = np.full(6, 3e38, dtype=np.float32)
    with pytest.raises(NeuroFreezeError, match=r"layers\.0\.attention"), np.errstate(over="ignore"):
        scores(**{"layers.0.attention": large}) + scores(**{"layers.0.attention": large})


def test_sum_and_difference_are_neuron_by_neuron() -> None:
    a, b = scores(1), scores(2)
    for name in SITES:
        np.testing.assert_array_equal((a + b).values[name], a.values[name] + b.values[name])
        np.testing.assert_array_equal((a - b).values[name], a.values[name] - b.values[name])


def test_a_mask_remembers_its_scores_and_where_they_came_from() -> None:
    found = scores()
    mask = found.top(0.25)
    assert mask.config.strategy == {"name": "test", "rule": "top", "fraction": 0.25, "per": "kind"}
    assert mask.scores is not None
    for name in SITES:
        np.testing.assert_array_equal(mask.scores[name], found.values[name])


def test_split_undoes_joined() -> None:
    found = scores()
    for names in kinds(MAP).values():
        for name, values in split(found.joined(names), names, MAP).items():
            np.testing.assert_array_equal(values, found.values[name])
