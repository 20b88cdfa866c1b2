"""`select`: from a name and examples to scores, refusing what it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.data import read
from neurofreeze.errors import ConfigError, DataError
from neurofreeze.models.load import load_model
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import STRATEGIES, NeuronScores, select


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return load_model(tiny_checkpoint, torch.float32)


def test_scores_every_neuron_of_a_checkpoint(model: Any, tiny_tokenizer: Any) -> None:
    examples, told = read("bundled:harmful/calibration", limit=10), []
    found = select(model, tiny_tokenizer, examples, batch_size=4, progress=lambda: told.append(1))
    assert {name: len(values) for name, values in found.values.items()} == {
        "layers.0.attention": 6,
        "layers.0.mlp": 70,
        "layers.1.attention": 6,
        "layers.1.mlp": 70,
    }
    assert all(values.std() > 0 for values in found.values.values())
    assert len(told) == 3


def test_safety_and_utility_data_give_different_scores(model: Any, tiny_tokenizer: Any) -> None:
    a, b = (
        select(model, tiny_tokenizer, read(source, limit=8))
        for source in ("bundled:harmful/calibration", "bundled:instructions/calibration")
    )
    assert all(np.abs((a - b).values[name]).max() > 0.01 for name in a.values)


def test_options_reach_the_strategy(model: Any, tiny_tokenizer: Any) -> None:
    examples = read("bundled:harmful/calibration", limit=4)
    raw = select(model, tiny_tokenizer, examples, "wifv", standardize=False)
    assert raw.strategy["standardize"] is False
    assert all((values >= 0).all() for values in raw.values.values())


def test_granularity_and_max_length_are_used(model: Any, tiny_tokenizer: Any) -> None:
    examples = read("bundled:harmful/calibration", limit=4)
    found = select(model, tiny_tokenizer, examples, granularity="channel", max_length=8)
    whole = select(model, tiny_tokenizer, examples, granularity="channel")
    assert len(found.values["layers.0.attention"]) == 36
    assert any(not np.array_equal(found.values[name], whole.values[name]) for name in whole.values)


def test_a_strategy_of_one_s_own_is_used_as_it_is(model: Any, tiny_tokenizer: Any) -> None:
    class Index:
        name = "index"
        sets = ("safety",)

        def run(self, model: Any, neuron_map: NeuronMap, sets: Any, progress: Any) -> NeuronScores:
            values = {name: np.arange(site.neurons, dtype=np.float32) for name, site in neuron_map.sites.items()}
            return NeuronScores(neuron_map, values, {"name": self.name, "batches": len(sets["safety"])})

    found = select(model, tiny_tokenizer, read("bundled:harmful/calibration", limit=5), Index(), batch_size=2)
    assert found.strategy == {"name": "index", "batches": 3}


def test_an_unknown_strategy_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no strategy 'wanda2'; expected one of " + ", ".join(STRATEGIES)):
        select(None, None, [], "wanda2")


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"strategy 'wifv': .*'standardise'"):
        select(None, None, [], "wifv", standardise=True)


def test_no_examples_are_refused(model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="empty"):
        select(model, tiny_tokenizer, [])
