"""Random scores: uniform, the same for the same seed whatever the weights, and independent of random masks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from neurofreeze.data import read
from neurofreeze.errors import ConfigError
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import select
from neurofreeze.strategies.random import Random
from tests import tiny
from tests.strategies.reference import conf

WIDE: dict[str, Any] = {"intermediate_size": 3000}


def values(model: Any, **options: Any) -> np.ndarray:
    return np.concatenate(list(select(model, None, [], "random", **options).values.values()))


def test_depends_on_the_seed_and_not_on_the_weights() -> None:
    first, second = tiny.model("llama", seed=0), tiny.model("llama", seed=1)
    np.testing.assert_array_equal(values(first, seed=3), values(second, seed=3))
    assert not np.array_equal(values(first, seed=3), values(first, seed=4))


def test_is_the_same_on_every_machine() -> None:
    found = select(tiny.model("llama"), None, [], "random", seed=0).values
    np.testing.assert_allclose(found["layers.0.attention"][:3], [0.080824039, 0.402437792, 0.601289206], rtol=1e-6)


def test_is_uniform_and_differs_from_site_to_site() -> None:
    found = select(tiny.model("llama", **WIDE), None, [], "random").values
    for name in ("layers.0.mlp", "layers.1.mlp"):
        counts = np.histogram(found[name], bins=10, range=(0, 1))[0]
        assert counts.sum() == 3000
        assert np.abs(counts - 300).max() < 80  # five standard deviations
    assert abs(np.corrcoef(found["layers.0.mlp"], found["layers.1.mlp"])[0, 1]) < 0.1


def test_its_top_and_a_random_mask_of_the_same_seed_are_independent() -> None:
    model = tiny.model("llama", **WIDE)
    neuron_map = NeuronMap.of(model)
    top = select(model, None, [], "random", seed=5).top(0.5, per="model")
    for mask in (NeuronMask.random(neuron_map, 0.5, seed=5), NeuronMask.random_like(top, seed=5)):
        assert (top & mask).count / top.count == pytest.approx(0.5, abs=0.05)


def test_needs_no_data_but_takes_it(tiny_tokenizer: Any) -> None:
    model, examples = tiny.model("llama"), read("bundled:harmful/calibration", limit=2)
    expected = values(model)
    for given in (examples, {"safety": examples, "utility": examples}):
        found = select(model, tiny_tokenizer, given, "random")
        np.testing.assert_array_equal(np.concatenate(list(found.values.values())), expected)
    assert found.strategy == {"seed": 0, "name": "random"}


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True])
def test_a_seed_that_is_no_integer_is_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match=r"seed is .*; expected an integer not below 0"):
        select(None, None, [], "random", seed=seed)


def test_the_conf_file_takes_the_run_s_seed() -> None:
    assert asdict(Random(**conf("random")["options"])) == asdict(Random())
    assert conf("random")["method"] == "top"
