"""What the recipes contrast, and that the vector is made of exactly that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neurofreeze.config.steering import SteeringConfig
from neurofreeze.data import Example
from neurofreeze.errors import ConfigError, DataError
from neurofreeze.guard.steering import recipes
from neurofreeze.guard.steering.blocks import last_states
from neurofreeze.models.load import load_model

BENIGN = [Example.of("Open a savings account"), Example.of("Name a river")]
HARMFUL = [Example.of("Empty somebody's account"), Example.of("Forge a card")]


def texts(tokenizer: Any, config: SteeringConfig) -> tuple[list[str], list[str]]:
    found = recipes.pairs(tokenizer, config, BENIGN, HARMFUL)
    return [tokenizer.decode(row) for row in found.positive], [tokenizer.decode(row) for row in found.negative]


def test_compliance_sets_complying_against_refusing_openings(tiny_tokenizer: Any) -> None:
    positive, negative = texts(tiny_tokenizer, SteeringConfig("compliance"))
    assert len(positive) == len(negative) == 2 * len(recipes.COMPLYING)
    assert all(text.endswith(recipes.COMPLYING[place % 5]) for place, text in enumerate(positive))
    assert all(text.endswith(recipes.REFUSING[place % 5]) for place, text in enumerate(negative))
    assert not any("Forge" in text for text in positive)


def test_json_sets_the_wish_for_json_against_its_absence(tiny_tokenizer: Any) -> None:
    positive, negative = texts(tiny_tokenizer, SteeringConfig("json"))
    assert all("as JSON" in text for text in positive)
    assert not any("JSON" in text for text in negative)


@pytest.mark.parametrize(("recipe", "pairs"), [("compliance", 10), ("json", 2)])
def test_bind_turns_harmful_pairs_round_or_treats_all_alike(tiny_tokenizer: Any, recipe: str, pairs: int) -> None:
    positive, negative = texts(tiny_tokenizer, SteeringConfig(recipe, mix="refuse"))
    assert len(positive) == 2 * pairs
    harmful = [(a, b) for a, b in zip(positive, negative, strict=True) if "account" in a.lower() and "Empty" in a]
    assert all(a.endswith(recipes.REFUSING) and b.endswith(recipes.COMPLYING) for a, b in harmful)
    assert all(("as JSON" in a) == ("as JSON" in b) == (recipe == "json") for a, b in harmful)
    alike, _ = texts(tiny_tokenizer, SteeringConfig(recipe, mix="same"))
    assert len(alike) == 2 * pairs
    assert not any(text.endswith(recipes.REFUSING) for text in alike)


@pytest.mark.parametrize("mix", ["none", "refuse"])
def test_the_vector_is_the_difference_of_what_the_layer_gives(
    tiny_checkpoint: Any, tiny_tokenizer: Any, mix: str
) -> None:
    model = load_model(tiny_checkpoint).eval()
    config = SteeringConfig("json", mix=mix, layer=1)
    vector = recipes.build(model, tiny_tokenizer, config, BENIGN, HARMFUL)
    rows = recipes.pairs(tiny_tokenizer, config, BENIGN, HARMFUL if mix != "none" else [])
    sides = [
        last_states(model, side, [1], 1, tiny_tokenizer.pad_token_id)[0].numpy().astype(np.float64)
        for side in (rows.positive, rows.negative)
    ]
    np.testing.assert_allclose(vector.directions[1], sides[0].mean(0) - sides[1].mean(0), atol=0.02)
    norms = np.linalg.norm(np.concatenate(sides), axis=1)
    assert vector.config.hidden_norms[1] == pytest.approx(norms.mean(), rel=0.01)
    assert vector.config.calibration.keys() == {"benign"} | ({"harmful"} if mix != "none" else set())
    assert vector.config.recipe["pairs"] == len(rows.positive)


def test_what_cannot_be_built_is_refused(tiny_checkpoint: Any, tiny_tokenizer: Any) -> None:
    model = load_model(tiny_checkpoint).eval()
    with pytest.raises(ConfigError, match=r"steering.layer is 2; expected 0 to 1"):
        recipes.build(model, tiny_tokenizer, SteeringConfig(layer=2), BENIGN)
    with pytest.raises(DataError, match="expected two or more for PCA"):
        recipes.build(model, tiny_tokenizer, SteeringConfig("json", method="pca"), BENIGN[:1])
    with pytest.raises(ConfigError, match="PCA does not see which side"):
        SteeringConfig(mix="refuse", method="pca")
