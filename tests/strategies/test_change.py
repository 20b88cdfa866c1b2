"""The change score against a transcription in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.data import read
from neurofreeze.errors import ConfigError, DataError
from neurofreeze.models.load import load_model
from neurofreeze.strategies import select
from neurofreeze.strategies.change import Change
from tests import tiny
from tests.strategies.reference import inputs, left_padded
from tests.strategies.scoring import batched, conversations, score
from tests.strategies.test_wifv import MODULES

ROWS = [(ids, 1 + index % 3) for index, (ids, _) in enumerate(conversations())]


def pair(architecture: str = "llama") -> tuple[Any, Any]:
    return tiny.model(architecture, seed=0), tiny.model(architecture, seed=1)


def channels(architecture: str) -> dict[str, np.ndarray]:
    """Site -> sqrt(mean_n (a_jn - a'_jn)^2) of every channel."""
    found = {}
    for layer in range(2):
        for kind, pattern in MODULES[architecture][0].items():
            name = pattern.format(layer)
            new, old = (np.concatenate(inputs(m, [name], ROWS, "response")[name]) for m in pair(architecture))
            found[f"layers.{layer}.{kind}"] = np.sqrt(((new - old) ** 2).mean(axis=0))
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_equals_the_formula(architecture: str) -> None:
    model, reference = pair(architecture)
    found = score(Change(reference), model, batched(3, ROWS)).values
    expected = {name: values for name, values in channels(architecture).items() if name.endswith("mlp")}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_head_has_the_mean_over_its_channels() -> None:
    model, reference = pair()
    found = score(Change(reference, attention=True), model, batched(3, ROWS)).values
    single = score(Change(reference, attention=True), model, batched(3, ROWS), "channel").values
    for name, values in channels("llama").items():
        np.testing.assert_allclose(single[name], values, rtol=1e-6)
        if name.endswith("attention"):
            np.testing.assert_allclose(found[name], values.reshape(6, 6).mean(1), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 7])
def test_batch_size_and_padding_do_not_matter(size: int) -> None:
    model, reference = pair()
    expected = score(Change(reference), model, batched(3, ROWS)).values
    for move in (list, left_padded):
        for name, values in score(Change(reference), model, move(batched(size, ROWS))).values.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-6)


def test_only_what_differs_has_a_score() -> None:
    model, reference = tiny.model("llama"), tiny.model("llama")
    assert not any(values.any() for values in score(Change(reference), model, batched(3)).values.values())
    with torch.no_grad():
        reference.model.layers[1].mlp.up_proj.weight[7] += 1
    found = score(Change(reference), model, batched(3)).values
    assert not found["layers.0.mlp"].any()
    assert np.flatnonzero(found["layers.1.mlp"]).tolist() == [7]


@pytest.mark.parametrize("training", [True, False])
def test_both_models_are_left_as_they_were(training: bool) -> None:
    models = [model.train(training) for model in pair()]
    score(Change(models[1]), models[0], batched(3))
    for model in models:
        assert model.training is training
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_dropout_is_off_in_both() -> None:
    model, reference = (tiny.model("gpt2", seed=seed, resid_pdrop=0.5, embd_pdrop=0.5) for seed in (0, 1))
    expected = score(Change(reference), model, batched(3)).values
    found = score(Change(reference.train()), model.train(), batched(3)).values
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_folder_is_loaded_and_recorded(tmp_path: Path, tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    model = load_model(tiny_checkpoint, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
    model.save_pretrained(tmp_path / "other")
    examples = read("bundled:harmful/calibration", limit=4)
    aligned = load_model(tiny_checkpoint, torch.float32)
    found = select(aligned, tiny_tokenizer, examples, "change", reference=str(tmp_path / "other"))
    same = select(aligned, tiny_tokenizer, examples, Change(model))
    expected = {"reference": str(tmp_path / "other"), "attention": False, "name": "change"}
    assert found.strategy.items() >= expected.items()
    assert found.values["layers.0.mlp"].min() > 0
    for name, values in found.values.items():
        np.testing.assert_array_equal(values, same.values[name])


def test_a_reference_with_other_neurons_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"reference .* has other neurons than the model"):
        score(Change(tiny.model("llama", intermediate_size=72)), tiny.model("llama"), batched(3))


def test_conversations_without_answers_are_refused() -> None:
    model, reference = pair()
    with pytest.raises(DataError, match="no conversation of the calibration set has an answer"):
        score(Change(reference), model, batched(3, [(ids, len(ids)) for ids, _ in ROWS]))
    with pytest.raises(DataError, match="the calibration set is empty"):
        score(Change(reference), model, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "no-such-folder"}, "reference is 'no-such-folder'; expected the folder of a checkpoint"),
        ({"reference": None}, "reference is None; expected the folder of a checkpoint, or a model"),
        ({}, "'reference'"),
    ],
)
def test_a_missing_reference_is_refused_before_any_model_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(None, None, [], "change", **options)


def test_the_conf_file_lists_every_option(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from neurofreeze.config.location import conf_folder

    found = OmegaConf.load(conf_folder() / "strategy" / "change.yaml")
    assert OmegaConf.is_missing(found.options, "reference")
    found.options.reference = str(tmp_path)
    assert Change(**found.options) == Change(str(tmp_path))
    assert set(found.options) == {"reference", "attention"}
    assert found.method == "top"
