"""NeST's probes against a transcription in numpy, and their rule as a set."""

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
from neurofreeze.strategies.observing import Point, Tokens
from neurofreeze.strategies.probe import Probe, PromptMaxima
from tests import tiny
from tests.strategies.reference import PARTS, conf, left_padded
from tests.strategies.scoring import batched, conversations, score

ROWS = {"safety": conversations(7, 0), "utility": conversations(5, 1)}
ROWS = {role: [(ids, 1 + index % 3) for index, (ids, _) in enumerate(rows)] for role, rows in ROWS.items()}
SETS = {role: batched(3, rows) for role, rows in ROWS.items()}

# Architecture -> the projections of a layer: a module, and which of its outputs.
PROJECTIONS = {
    "llama": [("model.layers.{}.mlp.gate_proj", slice(None)), ("model.layers.{}.mlp.up_proj", slice(None))],
    "gpt2": [("transformer.h.{}.mlp.c_fc", slice(None))],
    "opt": [("model.decoder.layers.{}.fc1", slice(None))],
    "phi3": [("model.layers.{}.mlp.gate_up_proj", slice(70)), ("model.layers.{}.mlp.gate_up_proj", slice(70, 140))],
}


def maxima(model: Any, name: str, role: str, positions: str) -> np.ndarray:
    """[prompts, outputs], one unpadded conversation at a time."""
    seen: list[torch.Tensor] = []
    handle = dict(model.named_modules())[name].register_forward_hook(lambda _, args, output: seen.append(output))
    with torch.no_grad():
        for ids, _ in ROWS[role]:
            model(input_ids=torch.tensor([ids]))
    handle.remove()
    parts = [PARTS[positions](start) for _, start in ROWS[role]]
    outputs = [x.double().flatten(0, -2).numpy() for x in seen]
    return np.stack([x[part].max(axis=0) for x, part in zip(outputs, parts, strict=True)])


def fitted(x: np.ndarray, y: np.ndarray, epochs: int, rate: float, decay: float) -> np.ndarray:
    """Logistic regression from zero by Adam (Kingma and Ba, algorithm 1) with decay added to the gradient."""
    x = np.hstack([x, np.ones((len(x), 1))])
    w, m, v = (np.zeros(x.shape[1]) for _ in range(3))
    for step in range(1, epochs + 1):
        g = x.T @ (1 / (1 + np.exp(-x @ w)) - y) / len(y) + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return w[:-1]


def probes(
    model: Any, architecture: str, positions: str = "prompt", standardize: bool = False, **adam: Any
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Site -> (z, w) of each projection."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for layer in range(2):
        for pattern, part in PROJECTIONS[architecture]:
            harmful, ordinary = (maxima(model, pattern.format(layer), role, positions)[:, part] for role in ROWS)
            x = np.vstack([harmful, ordinary])
            if standardize:
                x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-300)
            w = fitted(x, np.repeat([1.0, 0.0], [len(harmful), len(ordinary)]), **adam)
            found.setdefault(f"layers.{layer}.mlp", []).append(((w - w.mean()) / w.std(), w))
    return found


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("llama", {"positions": "response"}),
        ("llama", {"positions": "all", "standardize": True}),
        ("llama", {"learning_rate": 0.05, "weight_decay": 0.3}),
        ("gpt2", {}),
        ("opt", {"standardize": True}),
        ("phi3", {}),
    ],
)
def test_equals_the_formula(architecture: str, options: dict[str, Any]) -> None:
    model = tiny.model(architecture)
    found = score(Probe(epochs=40, **options), model, SETS).values
    adam = {
        "epochs": 40,
        "rate": options.pop("learning_rate", 1e-3),
        "decay": options.pop("weight_decay", 1e-3),
    }
    expected = probes(model, architecture, **options, **adam)
    assert found.keys() == expected.keys()
    for name, projections in expected.items():
        signed = [np.where(w > 0, z, np.minimum(z, w)) for z, w in projections]
        np.testing.assert_allclose(found[name], np.max(signed, axis=0), rtol=1e-5, atol=1e-6, err_msg=name)


def test_above_a_threshold_is_exactly_the_paper_s_rule() -> None:
    model = tiny.model("llama")
    mask = score(Probe(epochs=40), model, SETS).above(0.8)
    for name, (gate, up) in probes(model, "llama", epochs=40, rate=1e-3, decay=1e-3).items():
        chosen = [set(np.flatnonzero((z > 0.8) & (w > 0))) for z, w in (gate, up)]
        assert chosen[0] - chosen[1]  # each adds some
        assert chosen[1] - chosen[0]
        assert set(np.flatnonzero(mask.bits[name])) == chosen[0] | chosen[1]
        assert not mask.bits[name.replace("mlp", "attention")].any()


def test_a_neuron_that_harm_lowers_scores_below_zero_though_others_are_lowered_more() -> None:
    neuron_map = NeuronMap.of(tiny.config("llama"))
    rng = np.random.default_rng(0)
    seen: dict[str, Any] = {}
    for role, level in (("safety", -1.0), ("utility", 1.0)):
        samples = level + 0.1 * rng.normal(size=(6, 70))
        samples[:, 5] *= 1e-4
        seen[role] = Probe().watch(neuron_map)
        for maxima in seen[role].values():
            maxima.rows.append(torch.from_numpy(samples))
    found = Probe(epochs=300).score(tiny.model("llama"), neuron_map, seen).values["layers.0.mlp"]
    w = fitted(samples_of(seen), np.repeat([1.0, 0.0], 6), 300, 1e-3, 1e-3)
    assert (w < 0).all()
    assert w[5] > w.mean() + 3 * w.std()
    assert (found < 0).all()


def samples_of(seen: dict[str, Any]) -> np.ndarray:
    point = Point("model.layers.0.mlp.gate_proj", "output")
    return np.vstack([seen[role][point].rows[0].numpy() for role in ("safety", "utility")])


@pytest.mark.parametrize("size", [1, 7])
def test_batch_size_and_padding_do_not_matter(size: int) -> None:
    model = tiny.model("llama")
    expected = score(Probe(), model, SETS).values
    for move in (list, left_padded):
        sets = {role: move(batched(size, rows)) for role, rows in ROWS.items()}
        for name, values in score(Probe(), model, sets).values.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)


def test_the_same_data_give_the_same_scores_whatever_the_seed() -> None:
    model = tiny.model("llama")
    torch.manual_seed(1)
    first = score(Probe(), model, SETS).values
    torch.manual_seed(2)
    for name, values in score(Probe(), model, SETS).values.items():
        np.testing.assert_array_equal(values, first[name])


def test_maxima_are_kept_exactly_and_in_the_model_s_precision() -> None:
    values = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    attention, response = torch.ones(3, 5, dtype=torch.bool), torch.zeros(3, 5, dtype=torch.bool)
    response[1:, 3:] = True
    kept = PromptMaxima("prompt")
    kept.update(Tokens(values, attention, response))
    (rows,) = kept.rows
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows[0], values[0].amax(0))
    assert torch.equal(rows[1:], values[1:, :3].amax(1))


def test_gradients_are_not_switched_off_by_the_caller() -> None:
    model = tiny.model("llama")
    expected = score(Probe(), model, SETS).values
    with torch.no_grad():
        found = score(Probe(), model, SETS).values
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("role", ["safety", "utility"])
def test_a_set_without_prompts_is_refused(role: str) -> None:
    bare = [(ids, 0) for ids, _ in ROWS[role]]
    with pytest.raises(DataError, match=f"no prompt of the {role} set has tokens at positions='prompt'"):
        score(Probe(), tiny.model("llama"), {**SETS, role: batched(3, bare)})


def test_is_selected_by_name(tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    examples = {
        role: read(f"bundled:{name}/calibration", limit=8)
        for role, name in (("safety", "harmful"), ("utility", "instructions"))
    }
    found = select(load_model(tiny_checkpoint), tiny_tokenizer, examples, "probe", epochs=20)
    assert found.strategy["epochs"] == 20
    assert {name: len(values) for name, values in found.values.items()} == {"layers.0.mlp": 70, "layers.1.mlp": 70}
    assert 0 < found.above(0.5).count < 140


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected a whole number above 0"),
        ({"epochs": 1.5}, "epochs is 1.5; expected a whole number above 0"),
        ({"learning_rate": 0}, "learning_rate is 0; expected a number above 0"),
        ({"weight_decay": -1}, "weight_decay is -1; expected a number not below 0"),
        ({"positions": "first"}, "positions is 'first'; expected one of all, prompt, response"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(None, None, [], "probe", **options)


def test_the_conf_file_lists_every_option_with_its_default() -> None:
    assert asdict(Probe(**conf("probe")["options"])) == asdict(Probe())
    assert {"name", *conf("probe")["options"]} == set(asdict(Probe()))
    assert (conf("probe")["method"], conf("probe")["threshold"]) == ("above", 3.0)
