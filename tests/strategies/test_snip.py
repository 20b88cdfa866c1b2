"""SNIP summed over neurons against a transcription in numpy, and what is left of a model that was scored."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.data import read
from neurofreeze.data.batches import Batch
from neurofreeze.errors import ConfigError, DataError, NeuroFreezeError
from neurofreeze.models.load import load_model
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import select
from neurofreeze.strategies.resuming import Turns
from neurofreeze.strategies.snip import Snip
from tests import tiny
from tests.strategies.reference import conf, left_padded
from tests.strategies.scoring import Rows, batched, conversations, score

ROWS = [(ids, 1 + index % 3) for index, (ids, _) in enumerate(conversations())]


def products(model: Any, groups: list[Rows]) -> dict[str, np.ndarray]:
    """Mean over groups of |W * dL/dW|, L the mean over a group's answer tokens; one unpadded conversation at a time."""
    found = {name: np.zeros(tuple(p.shape)) for name, p in model.named_parameters()}
    for rows in groups:
        losses = []
        for ids, start in rows:
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            losses += [-log_probs[n - 1, ids[n]] for n in range(start, len(ids))]
        model.zero_grad()
        torch.stack(losses).mean().backward()
        for name, p in model.named_parameters():
            found[name] += np.abs(p.detach().numpy() * p.grad.numpy()) / len(groups)
    model.zero_grad()
    return found


def llama(f: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    sites = {}
    for layer in range(2):
        q, k, v, o = (f[f"model.layers.{layer}.self_attn.{m}_proj.weight"] for m in "qkvo")
        gate, up, down = (f[f"model.layers.{layer}.mlp.{m}_proj.weight"] for m in ("gate", "up", "down"))
        heads = []
        for head in range(6):
            own, shared = slice(6 * head, 6 * head + 6), slice(6 * (head // 3), 6 * (head // 3) + 6)
            heads.append(q[own].sum() + k[shared].sum() + v[shared].sum() + o[:, own].sum())
        sites[f"layers.{layer}.attention"] = np.array(heads)
        sites[f"layers.{layer}.mlp"] = gate.sum(1) + up.sum(1) + down.sum(0)
    return sites


def gpt2(f: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    sites = {}
    for layer in range(2):
        qkv, o, up, down = (
            f[f"transformer.h.{layer}.{m}.weight"] for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        )
        per_row = qkv.sum(0).reshape(3, 6, 6).sum(axis=(0, 2))  # stored [in, out]
        sites[f"layers.{layer}.attention"] = per_row + o.sum(1).reshape(6, 6).sum(1)
        sites[f"layers.{layer}.mlp"] = up.sum(0) + down.sum(1)
    return sites


def gpt_neox(f: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    sites = {}
    for layer in range(2):
        qkv, o, up, down = (
            f[f"gpt_neox.layers.{layer}.{m}.weight"]
            for m in ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
        )
        sites[f"layers.{layer}.attention"] = qkv.sum(1).reshape(6, 18).sum(1) + o.sum(0).reshape(6, 6).sum(1)
        sites[f"layers.{layer}.mlp"] = up.sum(1) + down.sum(0)
    return sites


@pytest.mark.parametrize("sites", [llama, gpt2, gpt_neox], ids=lambda sites: sites.__name__)
def test_equals_the_formula(sites: Any) -> None:
    model = tiny.model(sites.__name__)
    found = score(Snip(), model, batched(3, ROWS)).values
    expected = sites(products(model, [[row] for row in ROWS]))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


def test_one_gradient_a_batch_is_that_of_the_mean_over_its_answer_tokens() -> None:
    model, batches = tiny.model("llama"), batched(3, ROWS)
    found = score(Snip("batch"), model, batches).values
    expected = llama(products(model, [[ROWS[index] for index in batch.indices] for batch in batches]))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)
        assert (found[name] < score(Snip(), model, batches).values[name]).mean() > 0.5  # gradients cancel


def test_stacks_of_experts_have_scores_too() -> None:
    model = tiny.model("mixtral")
    found = score(Snip(), model, batched(3, ROWS)).values
    p = products(model, [[row] for row in ROWS])
    for layer in range(2):
        up, down = (p[f"model.layers.{layer}.mlp.experts.{m}"] for m in ("gate_up_proj", "down_proj"))
        expected = up.sum(2).reshape(5, 2, 10).sum(1) + down.sum(1)  # [experts, neurons]
        np.testing.assert_allclose(found[f"layers.{layer}.mlp.experts"], expected.flatten(), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 7])
def test_batch_size_and_padding_do_not_matter_with_one_gradient_an_example(size: int) -> None:
    model = tiny.model("llama")
    expected = score(Snip(), model, batched(3, ROWS)).values
    for move in (list, left_padded):
        for name, values in score(Snip(), model, move(batched(size, ROWS))).values.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-6)


def test_padding_does_not_matter_with_one_gradient_a_batch() -> None:
    model, batches = tiny.model("llama"), batched(3, ROWS)
    expected = score(Snip("batch"), model, batches).values
    for name, values in score(Snip("batch"), model, left_padded(batches)).values.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)


@pytest.mark.parametrize("average", ["example", "batch"])
def test_conversations_without_an_answer_do_not_count(average: Any) -> None:
    model = tiny.model("llama")
    expected = score(Snip(average), model, batched(3, ROWS)).values
    mute = batched(2, [(ids, len(ids)) for ids, _ in ROWS[:2]])
    for name, values in score(Snip(average), model, [*mute, *batched(3, ROWS)]).values.items():
        np.testing.assert_array_equal(values, expected[name])


def test_products_of_low_precision_are_taken_wide() -> None:
    model = tiny.model("llama", dtype=torch.bfloat16)
    expected = {name: np.zeros(tuple(p.shape)) for name, p in model.named_parameters()}

    def add(parameter: Any, to: np.ndarray) -> None:
        to += (parameter.detach().double() * parameter.grad.double()).abs().numpy() / len(ROWS)

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(partial(add, to=expected[name]))
    found = score(Snip(), model, batched(3, ROWS)).values
    for name, values in llama(expected).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = tiny.model("llama").train(training)
    p = dict(model.named_parameters())
    p["model.layers.0.mlp.up_proj.weight"].requires_grad_(False)
    kept = p["model.layers.1.mlp.up_proj.weight"].grad = torch.ones(70, 36, dtype=torch.float64)
    before = {name: parameter.clone() for name, parameter in p.items()}
    score(Snip(), model, batched(3))
    assert model.training is training
    assert [name for name in p if not p[name].requires_grad] == ["model.layers.0.mlp.up_proj.weight"]
    assert [name for name in p if p[name].grad is not None] == ["model.layers.1.mlp.up_proj.weight"]
    assert p["model.layers.1.mlp.up_proj.weight"].grad is kept
    assert (kept == 1).all()
    assert all(torch.equal(parameter, before[name]) for name, parameter in p.items())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in p.values())


def test_frozen_parameters_and_no_grad_make_no_difference() -> None:
    expected = score(Snip(), tiny.model("llama"), batched(3)).values
    with torch.no_grad():
        found = score(Snip(), tiny.model("llama").requires_grad_(False), batched(3)).values
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_no_more_than_one_gradient_is_alive_at_a_time() -> None:
    model, alive = tiny.model("llama"), []

    def count(_: Any) -> None:
        alive.append(sum(p.grad is not None for p in model.parameters()))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    score(Snip(), model, batched(3))
    assert len(alive) == 7 * 14  # seven conversations, seven matrices in two layers
    assert max(alive) == 1


def test_all_is_restored_after_an_error() -> None:
    model = tiny.model("llama").train()

    def broken() -> None:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        score(Snip(), model, batched(3), progress=broken)
    assert model.training
    assert not any(p._post_accumulate_grad_hooks or p.grad is not None for p in model.parameters())


def test_a_parameter_that_gets_no_gradient_is_named() -> None:
    model = tiny.model("llama")
    model.model.layers[1].mlp.register_forward_hook(lambda _, args, output: output.detach())
    with pytest.raises(NeuroFreezeError, match=r"model\.layers\.1\.mlp\.gate_proj\.weight, .* got no gradient"):
        score(Snip(), model, batched(3))


def run(model: Any) -> None:
    Snip().run(model, NeuronMap.of(tiny.config("llama")), {"safety": batched(3)}, Turns())


def test_deepspeed_is_refused() -> None:
    class DeepSpeedEngine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = tiny.model("llama")

    with pytest.raises(ConfigError, match=r"DeepSpeed .* score the model before deepspeed\.initialize"):
        run(DeepSpeedEngine())
    partitioned = tiny.model("llama")
    for parameter in partitioned.parameters():
        parameter.ds_id = 0
    with pytest.raises(ConfigError, match="DeepSpeed"):
        run(partitioned)


def test_parameters_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the model has no model\.layers\.0"):
        run(tiny.model("gpt2"))


def test_conversations_without_answers_are_refused() -> None:
    mute: list[Batch] = batched(3, [(ids, len(ids)) for ids, _ in ROWS])
    with pytest.raises(DataError, match="no conversation of the calibration set has an answer"):
        score(Snip(), tiny.model("llama"), mute)
    with pytest.raises(DataError, match="the calibration set is empty"):
        score(Snip(), tiny.model("llama"), [])


def test_is_selected_by_name(tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    examples, told = read("bundled:harmful/calibration", limit=6), []
    found = select(
        load_model(tiny_checkpoint), tiny_tokenizer, examples, "snip", batch_size=4, progress=lambda: told.append(1)
    )
    assert found.strategy.items() >= {"average": "example", "name": "snip"}.items()
    assert all((values > 0).all() for values in found.values.values())
    assert len(told) == 2


def test_another_average_is_refused() -> None:
    with pytest.raises(ConfigError, match="average is 'token'; expected one of example, batch"):
        select(None, None, [], "snip", average="token")


def test_the_conf_file_lists_every_option_with_its_default() -> None:
    assert asdict(Snip(**conf("snip")["options"])) == asdict(Snip())
    assert {"name", *conf("snip")["options"]} == set(asdict(Snip()))
    assert conf("snip")["method"] == "difference"
