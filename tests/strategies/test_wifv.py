"""WIFV against a transcription of the formula in numpy, on activations gathered by hooks of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.data.batches import Batch, pad
from neurofreeze.errors import DataError
from neurofreeze.strategies import WIFV, NeuronScores
from tests import tiny
from tests.strategies import scoring
from tests.strategies.scoring import batched, conversations

# Architecture -> site -> the module whose input the neurons are, and whether its weight is stored [in, out].
MODULES = {
    "llama": ({"attention": "model.layers.{}.self_attn.o_proj", "mlp": "model.layers.{}.mlp.down_proj"}, False),
    "gpt2": ({"attention": "transformer.h.{}.attn.c_proj", "mlp": "transformer.h.{}.mlp.c_proj"}, True),
    "opt": ({"attention": "model.decoder.layers.{}.self_attn.out_proj", "mlp": "model.decoder.layers.{}.fc2"}, False),
    "gpt_neox": (
        {"attention": "gpt_neox.layers.{}.attention.dense", "mlp": "gpt_neox.layers.{}.mlp.dense_4h_to_h"},
        False,
    ),
}
HEADS = 6


def score(model: Any, batches: Sequence[Batch], granularity: Any = "head", **options: Any) -> NeuronScores:
    return scoring.score(WIFV(**options), model, batches, granularity)


def reference(model: Any, architecture: str, standardize: bool, heads: bool) -> dict[str, np.ndarray]:
    """I_j = Var_n(X_nj) * ||W_:,j||^2 in float64, one unpadded conversation at a time."""
    patterns, transposed = MODULES[architecture]
    modules = dict(model.named_modules())
    scores = {}
    for layer in range(2):
        for kind, pattern in patterns.items():
            module, seen = modules[pattern.format(layer)], []
            handle = module.register_forward_hook(lambda _, args, output, seen=seen: seen.append(args[0]))
            with torch.no_grad():
                for ids, _ in conversations():
                    model(input_ids=torch.tensor([ids]))
            handle.remove()
            x = np.concatenate([tokens.double().flatten(0, -2).numpy() for tokens in seen])
            w = module.weight.detach().double().numpy()
            columns = w.T if transposed else w  # [out, in]
            result = np.array([x[:, j].var(ddof=1) * (columns[:, j] ** 2).sum() for j in range(x.shape[1])])
            if standardize:
                result = (result - result.mean()) / result.std()
            if kind == "attention" and heads:
                result = np.array([result[h * 6 : h * 6 + 6].mean() for h in range(HEADS)])
            scores[f"layers.{layer}.{kind}"] = result
    return scores


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("architecture", MODULES)
def test_equals_the_formula(architecture: str, standardize: bool) -> None:
    model = tiny.model(architecture)
    found = score(model, batched(3), standardize=standardize).values
    expected = reference(model, architecture, standardize, heads=True)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=2e-6, atol=1e-6, err_msg=name)


def test_a_channel_has_its_own_score() -> None:
    model = tiny.model("llama")
    found = score(model, batched(3), granularity="channel").values
    for name, values in reference(model, "llama", standardize=True, heads=False).items():
        np.testing.assert_allclose(found[name], values, rtol=2e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_batch_size_and_padding_do_not_matter(size: int) -> None:
    model = tiny.model("llama")
    # size 1 has no padding at all, size 7 the most.
    found, other = score(model, batched(size)).values, score(model, batched(3)).values
    for name in found:
        np.testing.assert_allclose(found[name], other[name], rtol=0, atol=2e-6)


def test_the_padding_token_itself_does_not_matter() -> None:
    model = tiny.model("gpt2")
    found, other = (score(model, list(pad(conversations(), token, 7))).values for token in (0, 63))
    for name in found:
        np.testing.assert_array_equal(found[name], other[name])


def test_the_answer_and_the_prompt_both_count() -> None:
    model, rows = tiny.model("llama"), conversations()
    found = score(model, batched(3, [(ids, len(ids) - 1) for ids, _ in rows])).values
    for name, values in score(model, batched(3, [(ids, 0) for ids, _ in rows])).values.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_site_without_any_variation_scores_zero() -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
        model.model.layers[1].mlp.up_proj.bias.zero_()
    assert not score(model, batched(3)).values["layers.1.mlp"].any()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = tiny.model("llama").train(training)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    score(model, batched(3))
    assert model.training is training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_dropout_is_off_while_scoring() -> None:
    model = tiny.model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    expected = score(model, batched(3)).values
    found = score(model.train(), batched(3)).values
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_hooks_are_removed_and_training_restored_after_an_error() -> None:
    model = tiny.model("llama").train()

    def broken() -> None:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        scoring.score(WIFV(), model, batched(3), progress=broken)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_progress_is_told_after_each_batch() -> None:
    told: list[int] = []
    scoring.score(WIFV(), tiny.model("llama"), batched(2), progress=lambda: told.append(1))
    assert len(told) == 4


def test_an_empty_calibration_set_is_refused() -> None:
    with pytest.raises(DataError, match="the calibration set is empty"):
        score(tiny.model("llama"), [])


def test_the_strategy_is_recorded_with_its_options() -> None:
    found = score(tiny.model("llama"), batched(7), standardize=False)
    assert found.strategy == {"standardize": False, "name": "wifv"}
