"""`select`: from a name and examples to scores, refusing what it does not know."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.data import read
from neurofreeze.data.batches import PLAIN_TEMPLATE
from neurofreeze.errors import ConfigError, DataError, NeuroFreezeWarning
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import STRATEGIES, NeuronScores, make, select


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

        def run(self, model: Any, neuron_map: NeuronMap, sets: Any, turns: Any) -> NeuronScores:
            values = {name: np.arange(site.neurons, dtype=np.float32) for name, site in neuron_map.sites.items()}
            return NeuronScores(neuron_map, values, {"name": self.name, "batches": len(sets["safety"])})

    found = select(model, tiny_tokenizer, read("bundled:harmful/calibration", limit=5), Index(), batch_size=2)
    assert found.strategy.items() >= {"name": "index", "batches": 3}.items()


def test_an_unknown_strategy_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no strategy 'wanda2'; expected one of " + ", ".join(STRATEGIES)):
        select(None, None, [], "wanda2")


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match="strategy 'wifv' has no option 'standardise'; expected one of standardize"):
        select(None, None, [], "wifv", standardise=True)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("wifv", "standardize"),
        ("probe", "standardize"),
        ("contrast", "attention"),
        ("change", "attention"),
        ("sn_tune", "subtract_foundation"),
    ],
)
def test_a_switch_is_true_or_false_and_no_text(name: str, option: str, tmp_path: Path) -> None:
    others = {"reference": str(tmp_path)} if name == "change" else {}
    with pytest.raises(ConfigError, match=f"{option} is 'no'; expected true or false"):
        make(name, {option: "no", **others})


def test_no_examples_are_refused(model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="empty"):
        select(model, tiny_tokenizer, [])


@pytest.mark.parametrize("strategy", ["wifv", "wanda", "contrast", "probe", "sn_tune", "snip", "margin"])
def test_the_tokenizer_s_padding_does_not_matter(strategy: str, model: Any, tiny_tokenizer: Any) -> None:
    examples = {
        name: read(f"bundled:{name}/calibration", limit=5) + read(f"bundled:{name}/calibration")[-2:]
        for name in ("harmful", "instructions")
    }
    sets = dict(zip(("safety", "utility"), examples.values(), strict=True))
    expected, *others = (
        select(model, tokenizer, sets, strategy, batch_size=3) for tokenizer in paddings(tiny_tokenizer)
    )
    for found in others:
        for name, values in expected.values.items():
            np.testing.assert_array_equal(found.values[name], values, err_msg=name)


def paddings(tokenizer: Any) -> Iterator[Any]:
    for side, token in (("right", "<pad>"), ("left", "<pad>"), ("left", "</s>"), ("right", None)):
        other = deepcopy(tokenizer)
        other.padding_side, other.pad_token = side, token
        assert (other.pad_token_id is None) == (token is None)
        yield other


def test_the_chat_template_is_recorded(model: Any, tiny_tokenizer: Any) -> None:
    examples = read("bundled:harmful/calibration", limit=4)
    mask = select(model, tiny_tokenizer, examples).top(0.1)
    digest = hashlib.sha256(tiny_tokenizer.chat_template.encode()).hexdigest()
    assert mask.config.strategy["chat_template"] == {"sha256": digest[:16], "own": True}
    named = deepcopy(tiny_tokenizer)
    named.chat_template = {"default": tiny_tokenizer.chat_template, "tool_use": "x"}
    assert select(model, named, examples).strategy == select(model, tiny_tokenizer, examples).strategy
    assert "chat_template" not in select(model, tiny_tokenizer, [], "random").strategy


def test_the_template_of_a_tokenizer_that_came_without_one_is_not_its_own(
    model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    without = deepcopy(tiny_tokenizer)
    without.chat_template = None
    without.save_pretrained(tmp_path)
    with pytest.warns(NeuroFreezeWarning, match="has no chat template"):
        tokenizer = load_tokenizer(tmp_path)
    found = select(model, tokenizer, read("bundled:harmful/calibration", limit=4))
    assert found.strategy["chat_template"]["own"] is False
    assert found.strategy["chat_template"]["sha256"] == hashlib.sha256(PLAIN_TEMPLATE.encode()).hexdigest()[:16]


@pytest.mark.parametrize("template", [None, {"tool_use": "x", "rag": "y"}])
@pytest.mark.parametrize("strategy", ["wifv", "margin"])
def test_a_tokenizer_without_a_chat_template_is_refused(
    strategy: str, template: Any, model: Any, tiny_tokenizer: Any
) -> None:
    without = deepcopy(tiny_tokenizer)
    without.chat_template = template
    with pytest.raises(DataError, match="has no chat template, or several and no default"):
        select(model, without, read("bundled:harmful/calibration", limit=4), strategy)
