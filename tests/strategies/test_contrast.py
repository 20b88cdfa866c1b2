"""SafeNeuron's two statistics against transcriptions in numpy, and their union as a set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.data import read
from neurofreeze.errors import ConfigError, DataError
from neurofreeze.models.load import load_model
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import select
from neurofreeze.strategies.contrast import Contrast
from neurofreeze.strategies.observing import Point
from neurofreeze.strategies.statistics import RunningMoments
from tests import tiny
from tests.strategies.reference import conf, inputs, left_padded
from tests.strategies.scoring import batched, conversations, score
from tests.strategies.test_wifv import MODULES

ROWS = {"safety": conversations(7, 0), "utility": conversations(5, 1)}
ROWS = {role: [(ids, 1 + index % 3) for index, (ids, _) in enumerate(rows)] for role, rows in ROWS.items()}
SETS = {role: batched(3, rows) for role, rows in ROWS.items()}


def parts(model: Any, architecture: str, pooling: str, positions: str) -> dict[str, tuple[np.ndarray, ...]]:
    """Site -> (d, z, D) of every channel."""
    patterns, found = MODULES[architecture][0], {}
    for layer in range(2):
        for kind, pattern in patterns.items():
            name = pattern.format(layer)
            unsafe, safe = (
                np.stack([getattr(x, pooling)(axis=0) for x in inputs(model, [name], rows, positions)[name]])
                for rows in ROWS.values()
            )
            n_u, n_s = len(unsafe), len(safe)
            variance = ((n_u - 1) * unsafe.var(0, ddof=1) + (n_s - 1) * safe.var(0, ddof=1)) / (n_u + n_s - 2)
            shift = unsafe.mean(0) - safe.mean(0)
            # In OPT a neuron may be off on every prompt.
            d = np.array([s / np.sqrt(v) if v > 0 else 0 for s, v in zip(shift, variance, strict=True)])
            found[f"layers.{layer}.{kind}"] = d, (shift - shift.mean()) / shift.std(), shift
    return found


@pytest.mark.parametrize("positions", ["prompt", "response", "all"])
@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_equals_the_formulas(architecture: str, pooling: Any, positions: Any) -> None:
    model = tiny.model(architecture)
    options: Any = {"pooling": pooling, "positions": positions}
    es, sas, union = (
        score(Contrast(statistic, 0.5, 1.5, **options), model, SETS).values for statistic in ("es", "sas", "union")
    )
    expected = {k: v for k, v in parts(model, architecture, pooling, positions).items() if k.endswith("mlp")}
    assert es.keys() == sas.keys() == union.keys() == expected.keys()
    for name, (d, z, shift) in expected.items():
        np.testing.assert_allclose(es[name], d, rtol=1e-5, atol=1e-6)
        counted = np.array([z_j if shift_j > 0 else min(z_j, 0) for z_j, shift_j in zip(z, shift, strict=True)])
        np.testing.assert_allclose(sas[name], counted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(union[name], np.maximum(d / 0.5, counted / 1.5), rtol=1e-5, atol=1e-6)


def test_above_one_is_exactly_the_union_of_both_sets() -> None:
    model = tiny.model("llama")
    mask = score(Contrast(tau_es=0.6, tau_sas=1.0), model, SETS).above(1)
    for name, (d, z, shift) in parts(model, "llama", "mean", "prompt").items():
        if name.endswith("attention"):
            assert not mask.bits[name].any()
            continue
        es = set(np.flatnonzero(d > 0.6))
        sas = set(np.flatnonzero((z > 1.0) & (shift > 0)))
        assert es - sas  # each adds some
        assert sas - es
        assert set(np.flatnonzero(mask.bits[name])) == es | sas


def test_a_head_has_the_means_over_its_channels() -> None:
    model = tiny.model("llama")
    options: Any = {"attention": True}
    es, sas = (score(Contrast(statistic, **options), model, SETS).values for statistic in ("es", "sas"))
    union = score(Contrast(tau_es=1.0, tau_sas=0.5, attention=True), model, SETS).values
    assert set(es) == {f"layers.{layer}.{kind}" for layer in range(2) for kind in ("attention", "mlp")}
    for name in ("layers.0.attention", "layers.1.attention"):
        d, z, shift = (channels.reshape(6, 6).mean(1) for channels in parts(model, "llama", "mean", "prompt")[name])
        counted = np.where(shift > 0, z, np.minimum(z, 0))
        np.testing.assert_allclose(es[name], d, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(sas[name], counted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(union[name], np.maximum(d, counted / 0.5), rtol=1e-5, atol=1e-6)


def by_hand(statistic: Any, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
    """Scores of the first MLP from the samples [prompts, 70] of each set."""
    neuron_map = NeuronMap.of(tiny.config("llama"))
    strategy = Contrast(statistic)
    seen = {}
    for role, samples in (("safety", unsafe), ("utility", safe)):
        seen[role] = {Point.activations(site): RunningMoments() for site in neuron_map.sites.values()}
        for moments in seen[role].values():
            moments.add(torch.from_numpy(samples))
    return strategy.score(None, neuron_map, seen).values["layers.0.mlp"]


def test_a_neuron_that_harm_lowers_less_than_others_is_no_safety_neuron() -> None:
    noise = np.random.default_rng(0).normal(size=(8, 70))
    shift = np.full(70, -10.0)
    shift[4], shift[5] = -1.0, 8.0
    found = by_hand("sas", noise + shift, noise)
    assert found[4] == 0 < 2 < found[5]


def test_a_neuron_constant_on_each_set_has_a_finite_effect_size() -> None:
    rng = np.random.default_rng(0)
    unsafe, safe = rng.normal(size=(8, 70)), rng.normal(size=(8, 70))
    unsafe[:, :3], safe[:, :3] = [0.5, 0, -0.5], 0
    found = by_hand("es", unsafe, safe)
    assert found[0] > 1e30
    assert found[1] == 0
    assert found[2] < -1e30
    assert np.abs(found[3:]).max() < 10


@pytest.mark.parametrize("size", [1, 7])
def test_batch_size_and_padding_do_not_matter(size: int) -> None:
    model = tiny.model("llama")
    expected = score(Contrast(attention=True), model, SETS).values
    for move in (list, left_padded):
        sets = {role: move(batched(size, rows)) for role, rows in ROWS.items()}
        for name, values in score(Contrast(attention=True), model, sets).values.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)


def test_swapping_the_sets_turns_effect_sizes_round() -> None:
    model = tiny.model("llama")
    found = score(Contrast("es"), model, SETS).values
    swapped = score(Contrast("es"), model, {"safety": SETS["utility"], "utility": SETS["safety"]}).values
    for name, values in found.items():
        np.testing.assert_allclose(swapped[name], -values, rtol=1e-6)


@pytest.mark.parametrize("short", ["safety", "utility"])
def test_a_set_of_one_prompt_is_refused(short: str) -> None:
    with pytest.raises(DataError, match=rf"the {short} set has 1 prompts .* expected at least 2"):
        score(Contrast(), tiny.model("llama"), {**SETS, short: batched(1, ROWS[short][:1])})


def test_is_selected_by_name(tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    examples = {
        role: read(f"bundled:{name}/calibration", limit=8)
        for role, name in (("safety", "harmful"), ("utility", "instructions"))
    }
    found = select(load_model(tiny_checkpoint, torch.float32), tiny_tokenizer, examples, "contrast", tau_sas=1.5)
    assert found.strategy["tau_sas"] == 1.5
    assert {name: len(values) for name, values in found.values.items()} == {"layers.0.mlp": 70, "layers.1.mlp": 70}
    assert 0 < found.above(1).count < 140


def test_one_set_alone_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="'utility' is not given"):
        select(tiny.model("llama"), tiny_tokenizer, read("bundled:harmful/calibration", limit=2), "contrast")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "auc"}, "statistic is 'auc'; expected one of es, sas, union"),
        ({"pooling": "last"}, "pooling is 'last'; expected one of mean, max"),
        ({"positions": "first"}, "positions is 'first'; expected one of all, prompt, response"),
        ({"tau_es": 0}, "tau_es is 0; expected a number above 0"),
        ({"tau_sas": float("nan")}, "tau_sas is nan; expected a number above 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(None, None, [], "contrast", **options)


def test_the_conf_file_lists_every_option_with_its_default() -> None:
    assert asdict(Contrast(**conf("contrast")["options"])) == asdict(Contrast())
    assert {"name", *conf("contrast")["options"]} == set(asdict(Contrast()))
    assert (conf("contrast")["method"], conf("contrast")["threshold"]) == ("above", 1.0)
