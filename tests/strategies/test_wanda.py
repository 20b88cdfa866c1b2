"""Wanda against a transcription of the formula in numpy, matrix by matrix, on activations of the test's own."""

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
from neurofreeze.strategies import select
from neurofreeze.strategies.wanda import Wanda
from tests import tiny
from tests.strategies.reference import conf, inputs, left_padded
from tests.strategies.scoring import batched, conversations, score

LAYERS = {
    "llama": "model.layers.{}.",
    "opt": "model.decoder.layers.{}.",
    "gpt2": "transformer.h.{}.",
    "gpt_neox": "gpt_neox.layers.{}.",
}
ATTENTION = {
    "llama": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    "opt": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    "gpt2": ("attn.c_attn", "attn.c_proj"),
    "gpt_neox": ("attention.query_key_value", "attention.dense"),
}
MLP = {
    "llama": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "opt": ("fc1", "fc2"),
    "gpt2": ("mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
}


def head_rows(architecture: str, head: int) -> tuple[list[int], ...]:
    """The rows of head `head` in each matrix that reads: 6 heads of 6 channels, in Llama 2 KV heads."""
    own = list(range(6 * head, 6 * head + 6))
    if architecture == "llama":
        shared = list(range(6 * (head // 3), 6 * (head // 3) + 6))
        return own, shared, shared
    if architecture == "opt":
        return own, own, own
    if architecture == "gpt2":
        return ([36 * part + row for part in range(3) for row in own],)
    return (list(range(18 * head, 18 * head + 18)),)


def weight_scores(model: Any, architecture: str, positions: str) -> dict[str, np.ndarray]:
    """|W_ij| * ||X_j|| of every matrix, float64 [out, in]."""
    modules = dict(model.named_modules())
    names = [
        LAYERS[architecture].format(layer) + leaf
        for layer in range(2)
        for leaf in ATTENTION[architecture] + MLP[architecture]
    ]
    found = {}
    for name, x in inputs(model, names, conversations(), positions).items():
        w = np.abs(modules[name].weight.detach().double().numpy())
        norms = np.sqrt((np.concatenate(x) ** 2).sum(0))
        found[name] = (w.T if architecture == "gpt2" else w) * norms
    return found


def reference(model: Any, architecture: str, positions: str = "response") -> dict[str, np.ndarray]:
    scores, expected = weight_scores(model, architecture, positions), {}
    for layer in range(2):
        prefix = LAYERS[architecture].format(layer)
        *reads, write = (scores[prefix + leaf] for leaf in ATTENTION[architecture])
        expected[f"layers.{layer}.attention"] = np.array(
            [
                sum(s[rows].sum() for s, rows in zip(reads, head_rows(architecture, head), strict=True))
                + write[:, 6 * head : 6 * head + 6].sum()
                for head in range(6)
            ]
        )
        *reads, write = (scores[prefix + leaf] for leaf in MLP[architecture])
        expected[f"layers.{layer}.mlp"] = np.array(
            [sum(s[j].sum() for s in reads) + write[:, j].sum() for j in range(70)]
        )
    return expected


def same(found: Any, expected: Any, rtol: float = 2e-6) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("architecture", LAYERS)
def test_equals_the_formula(architecture: str) -> None:
    model = tiny.model(architecture)  # with biases other than 0, which do not count
    same(score(Wanda(), model, batched(3)).values, reference(model, architecture))


@pytest.mark.parametrize("positions", ["all", "prompt", "response"])
def test_only_the_inputs_at_the_chosen_positions_count(positions: Any) -> None:
    model = tiny.model("llama")
    same(score(Wanda(positions), model, batched(3)).values, reference(model, "llama", positions))


def test_an_attention_channel_is_its_value_row_and_its_output_column() -> None:
    model = tiny.model("llama")
    found = score(Wanda(), model, batched(3), granularity="channel").values
    for layer in range(2):
        scores = weight_scores(model, "llama", "response")
        value, output = (scores[f"model.layers.{layer}.self_attn.{leaf}"] for leaf in ("v_proj", "o_proj"))
        expected = [value[c // 18 * 6 + c % 6].sum() + output[:, c].sum() for c in range(36)]
        np.testing.assert_allclose(found[f"layers.{layer}.attention"], expected, rtol=2e-6)


@pytest.mark.parametrize("size", [1, 7])
def test_batch_size_and_padding_do_not_matter(size: int) -> None:
    model = tiny.model("llama")
    expected = score(Wanda(), model, batched(3)).values
    same(score(Wanda(), model, batched(size)).values, expected)
    same(score(Wanda(), model, left_padded(batched(size))).values, expected)


def test_set_difference_of_masks_is_top_on_safety_that_is_not_top_on_utility() -> None:
    model = tiny.model("llama")
    safety, utility = (score(Wanda(), model, batched(3, conversations(7, seed))) for seed in range(2))
    mask = safety.top(0.5) - utility.top(0.3)
    chosen = 0
    for kind, neurons in (("attention", 6), ("mlp", 70)):
        sites = [f"layers.{layer}.{kind}" for layer in range(2)]
        order = [np.argsort(-np.concatenate([s.values[name] for name in sites])) for s in (safety, utility)]
        expected = set(order[0][:neurons].tolist()) - set(order[1][: round(0.6 * neurons)].tolist())
        found = np.flatnonzero(np.concatenate([mask.bits[name] for name in sites]))
        assert set(found.tolist()) == expected
        chosen += len(expected)
    assert 0 < mask.count == chosen < safety.top(0.5).count


def test_is_selected_by_name(tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    examples = read("bundled:harmful/calibration", limit=6)
    model = load_model(tiny_checkpoint, torch.float32)
    found, other = (
        select(model, tiny_tokenizer, {"safety": examples, "utility": examples[:1]}, "wanda", positions=positions)
        for positions in ("response", "all")
    )
    assert found.strategy.items() >= {"positions": "response", "name": "wanda"}.items()
    assert all((other.values[name] > values).all() and (values > 0).all() for name, values in found.values.items())


def test_answers_cut_off_are_noticed() -> None:
    cut = [(ids, len(ids)) for ids, _ in conversations()]
    with pytest.raises(DataError, match="no conversation of the calibration set has tokens at positions='response'"):
        score(Wanda(), tiny.model("llama"), batched(3, cut))


def test_unknown_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions is 'answer'; expected one of all, prompt, response"):
        select(None, None, [], "wanda", positions="answer")


def test_the_conf_file_lists_every_option_with_its_default() -> None:
    assert asdict(Wanda(**conf("wanda")["options"])) == asdict(Wanda())
    assert {"name", *conf("wanda")["options"]} == set(asdict(Wanda()))
    assert conf("wanda")["method"] == "difference"
