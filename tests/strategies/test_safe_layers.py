"""Whole layers: all of their neurons, no other, and only layers that exist."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import MissingMandatoryValue, OmegaConf

from neurofreeze.config.location import conf_folder
from neurofreeze.data import read
from neurofreeze.errors import ConfigError
from neurofreeze.strategies import select
from tests import tiny


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.model("llama", num_hidden_layers=4)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 2), (3, 3), (0, 3)])
def test_chooses_every_neuron_of_these_layers_and_no_other(model: Any, first: int, last: int) -> None:
    mask = select(model, None, [], "safe_layers", first=first, last=last).above(0.5)
    chosen = set(range(first, last + 1))
    for layer in range(4):
        for kind in ("attention", "mlp"):
            bits = mask.bits[f"layers.{layer}.{kind}"]
            assert bits.all() if layer in chosen else not bits.any()
    assert mask.config.strategy == {
        "first": first,
        "last": last,
        "name": "safe_layers",
        "rule": "above",
        "threshold": 0.5,
    }


def test_needs_no_data_but_takes_it(model: Any, tiny_tokenizer: Any) -> None:
    expected = select(model, None, {}, "safe_layers", first=1, last=2).above(0.5)
    examples = read("bundled:harmful/calibration", limit=2)
    for given in (examples, {"safety": examples, "utility": examples}):
        assert select(model, tiny_tokenizer, given, "safe_layers", first=1, last=2).above(0.5) == expected


def test_a_layer_past_the_last_names_how_many_there_are(model: Any) -> None:
    with pytest.raises(ConfigError, match="last is 4; expected at most 3, since the model has 4 layers"):
        select(model, None, [], "safe_layers", first=2, last=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": -1, "last": 2}, "first is -1; expected a layer"),
        ({"first": 2, "last": 1}, "last is 1; expected a layer not before first=2"),
        ({"first": 0.5, "last": 1}, "first is 0.5; expected a layer"),
        ({"first": 0, "last": "2"}, "last is '2'; expected a layer"),
        ({"last": 2}, "strategy 'safe_layers': .*'first'"),
    ],
)
def test_layers_that_make_no_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(None, None, [], "safe_layers", **options)


def test_the_conf_file_leaves_the_layers_to_the_user() -> None:
    found = OmegaConf.load(conf_folder() / "strategy" / "safe_layers.yaml")
    with pytest.raises(MissingMandatoryValue, match="first"):
        _ = found.options.first
    filled = OmegaConf.merge(found, {"options": {"first": 1, "last": 2}})
    assert OmegaConf.to_object(filled.options) == {"first": 1, "last": 2}
    assert (found.method, found.threshold) == ("above", 0.5)
