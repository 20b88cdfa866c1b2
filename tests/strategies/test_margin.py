"""Attribution to the refusal margin: against its formula in numpy, and against the margin when a neuron is scaled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from neurofreeze.data import read
from neurofreeze.data.batches import Batch, prompt_ids
from neurofreeze.errors import ConfigError, DataError, NeuroFreezeError
from neurofreeze.evaluation.likelihood import COMPLYING, REFUSING, refusal_margins
from neurofreeze.models.load import load_model
from neurofreeze.strategies import WIFV, make, select, select_all
from neurofreeze.strategies.margin import Margin
from tests import tiny
from tests.strategies.reference import conf, left_padded
from tests.strategies.scoring import Rows, batched, conversations, score
from tests.strategies.test_wifv import MODULES

OPENINGS = ([5, 9, 30], [7, 8, 9, 10, 11], [40], [41, 2])  # two that refuse, two that comply
SIGNS = (0.5, 0.5, -0.5, -0.5)
PROMPTS = [ids for ids, _ in conversations(5)]
ROWS: Rows = [(prompt + opening, len(prompt)) for prompt in PROMPTS for opening in OPENINGS]


def margin(model: Any) -> torch.Tensor:
    """The mean over prompts of M, one unpadded row at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for index, (ids, start) in enumerate(ROWS):
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        total = total + SIGNS[index % 4] * sum(log_probs[n - 1, ids[n]] for n in range(start, len(ids)))
    return total / len(PROMPTS)


@contextmanager
def scaled(model: Any, name: str, channels: slice, factor: float) -> Iterator[None]:
    """The model with some inputs of a module multiplied by a factor."""

    def scale(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        changed = args[0].clone()
        changed[..., channels] *= factor
        return (changed,)

    handle = dict(model.named_modules())[name].register_forward_pre_hook(scale)
    try:
        yield
    finally:
        handle.remove()


def attributed(model: Any, name: str) -> np.ndarray:
    """sum_n a_n * dM/da_n of every channel that flows into a module."""
    seen: list[torch.Tensor] = []

    def keep(_: Any, args: tuple[torch.Tensor]) -> None:
        args[0].retain_grad()
        seen.append(args[0])

    handle = dict(model.named_modules())[name].register_forward_pre_hook(keep)
    margin(model).backward()
    handle.remove()
    model.zero_grad()
    return sum((a.detach().numpy() * a.grad.numpy()).reshape(-1, a.shape[-1]).sum(axis=0) for a in seen)


@pytest.mark.parametrize("architecture", MODULES)
def test_equals_the_formula(architecture: str) -> None:
    model = tiny.model(architecture)
    found = score(Margin(), model, batched(6, ROWS)).values
    single = score(Margin(), model, batched(6, ROWS), "channel").values
    for layer in range(2):
        for kind, pattern in MODULES[architecture][0].items():
            name, expected = f"layers.{layer}.{kind}", attributed(model, pattern.format(layer))
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(single[name], expected, rtol=2e-6, atol=1e-8, err_msg=name)
            summed = expected.reshape(6, 6).sum(1) if kind == "attention" else expected
            np.testing.assert_allclose(found[name], summed, rtol=2e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_taken_in_more_than_the_models_precision(dtype: torch.dtype) -> None:
    model, seen = tiny.model("llama", dtype=dtype), []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)  # about what models begin with: gradients of 1e-5

    def watch(_: Any, args: tuple[torch.Tensor]) -> None:
        values = args[0].detach().double()
        args[0].register_hook(lambda gradient: seen.append((values * gradient.double()).sum((0, 1)).numpy()))

    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(watch)
    found = score(Margin(), model, batched(4, ROWS)).values["layers.1.mlp"]
    handle.remove()
    expected = sum(seen) / len(PROMPTS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * float(np.abs(expected).max()))


# Llama's norms compute in float32 whatever the model's precision: smaller steps would drown in rounding.
@pytest.mark.parametrize(("architecture", "eps", "rel", "abs_"), [("llama", 1e-2, 1e-3, 1e-6), ("gpt2", 1e-4, 1e-5, 0)])
@torch.no_grad()
def test_scaling_a_neuron_changes_the_margin_by_its_score(
    architecture: str, eps: float, rel: float, abs_: float
) -> None:
    model = tiny.model(architecture)
    found = score(Margin(), model, batched(6, ROWS)).values
    for layer in range(2):
        for kind, pattern in MODULES[architecture][0].items():
            width = 6 if kind == "attention" else 1
            for neuron in range(6):
                channels = slice(width * neuron, width * (neuron + 1))
                with scaled(model, pattern.format(layer), channels, 1 - eps):
                    less = margin(model)
                with scaled(model, pattern.format(layer), channels, 1 + eps):
                    more = margin(model)
                slope = float(less - more) / 2
                assert -eps * found[f"layers.{layer}.{kind}"][neuron] == pytest.approx(slope, rel=rel, abs=abs_)


def test_it_is_the_margin_of_the_evaluation(tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    model = load_model(tiny_checkpoint, torch.float64)
    examples, eps = read("bundled:harmful/calibration", limit=3), 0.02
    found = select(model, tiny_tokenizer, examples, "margin").values["layers.0.attention"]

    def mean() -> float:
        return float(np.mean(refusal_margins(model, tiny_tokenizer, examples, 4)))

    for head in range(6):
        with scaled(model, "model.layers.0.self_attn.o_proj", slice(6 * head, 6 * head + 6), 1 - eps):
            less = mean()
        with scaled(model, "model.layers.0.self_attn.o_proj", slice(6 * head, 6 * head + 6), 1 + eps):
            more = mean()
        assert -eps * found[head] == pytest.approx((less - more) / 2, rel=0.01, abs=2e-6)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_batch_size_and_padding_do_not_matter(size: int) -> None:
    model = tiny.model("llama")
    expected = score(Margin(), model, batched(6, ROWS)).values
    for move in (list, left_padded):
        for name, values in score(Margin(), model, move(batched(size, ROWS))).values.items():
            np.testing.assert_allclose(values, expected[name], rtol=2e-6, atol=1e-9)


def test_exchanging_the_openings_turns_the_scores_round() -> None:
    model = tiny.model("llama")
    found = score(Margin(), model, batched(6, ROWS)).values
    rows = [ROWS[4 * (i // 4) + (i + 2) % 4] for i in range(len(ROWS))]
    for name, values in score(Margin(), model, batched(6, rows)).values.items():
        np.testing.assert_allclose(values, -found[name], rtol=2e-6, atol=1e-9)


def test_each_side_is_a_mean_over_its_openings() -> None:
    model = tiny.model("llama")
    found = score(Margin(), model, batched(6, ROWS)).values
    twice = [row for i in range(0, len(ROWS), 4) for row in (*ROWS[i : i + 2], *ROWS[i : i + 2], *ROWS[i + 2 : i + 4])]
    unequal = Margin(refusing=["a", "b", "a", "b"], complying=["c", "d"])
    for name, values in score(unequal, model, batched(6, twice)).values.items():
        np.testing.assert_allclose(values, found[name], rtol=2e-6, atol=1e-9)


def rows_of(batches: list[Batch]) -> dict[int, tuple[list[int], list[int]]]:
    """Row -> its tokens before and after where the answer begins."""
    found = {}
    for batch in batches:
        for index, ids, attention, response in zip(*batch, strict=True):
            prompt = attention.bool() & ~response
            found[index] = ids[prompt].tolist(), ids[response].tolist()
    return found


def test_every_prompt_comes_with_every_opening_and_is_never_cut(tiny_tokenizer: Any) -> None:
    examples, tokenizer = read("bundled:harmful/calibration", limit=3), deepcopy(tiny_tokenizer)
    # As Llama's tokenizer does, which must not happen in the middle of a conversation.
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert tokenizer("a")["input_ids"][0] == 1
    rows = rows_of(Margin().batches(tokenizer, examples, batch_size=5, max_length=4))
    assert sorted(rows) == list(range(12))
    for index, (prompt, opening) in rows.items():
        assert prompt == prompt_ids(tiny_tokenizer, examples[index // 4])
        assert tiny_tokenizer.decode(opening).strip() == (*REFUSING, *COMPLYING)[index % 4]


def test_options_choose_the_openings(tiny_tokenizer: Any) -> None:
    chosen = make("margin", {"refusing": ["No"], "complying": ["Yes", "Of course"]})
    assert isinstance(chosen, Margin)
    rows = rows_of(list(chosen.batches(tiny_tokenizer, read("bundled:harmful/calibration", limit=1), 8, None)))
    assert [tiny_tokenizer.decode(rows[index][1]).strip() for index in range(3)] == ["No", "Yes", "Of course"]


def test_it_may_be_asked_for_together_with_others(tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    model, examples = load_model(tiny_checkpoint, torch.float32), read("bundled:harmful/calibration", limit=4)
    together = select_all(model, tiny_tokenizer, examples, [WIFV(), Margin()])
    for found, strategy in zip(together, ("wifv", "margin"), strict=True):
        assert found.strategy["name"] == strategy
        alone = select(model, tiny_tokenizer, examples, strategy)
        for name, values in found.values.items():
            np.testing.assert_array_equal(values, alone.values[name])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = tiny.model("llama").train(training)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    score(Margin(), model, batched(6, ROWS))
    assert model.training is training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_frozen_parameters_and_no_grad_make_no_difference() -> None:
    expected = score(Margin(), tiny.model("llama"), batched(6, ROWS)).values
    with torch.no_grad():
        found = score(Margin(), tiny.model("llama").requires_grad_(False), batched(6, ROWS)).values
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-6, atol=1e-9)


def test_hooks_are_removed_and_training_restored_after_an_error() -> None:
    model = tiny.model("llama").train()

    def broken() -> None:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        score(Margin(), model, batched(6, ROWS), progress=broken)
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_site_that_no_gradient_reaches_is_named() -> None:
    model = tiny.model("llama")
    model.model.layers[1].mlp.register_forward_hook(lambda _, args, output: output.detach())
    with pytest.raises(NeuroFreezeError, match=r"no gradient reached the activations of layers\.1\.mlp;"):
        score(Margin(), model, batched(6, ROWS))


def test_no_prompts_are_refused(tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="the calibration set is empty"):
        select(load_model(tiny_checkpoint), tiny_tokenizer, [], "margin")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refusing": []}, r"refusing is \[\]; expected a list of openings"),
        ({"complying": "Sure"}, "complying is 'Sure'; expected a list of openings"),
        ({"complying": ["Sure", ""]}, r"complying is \['Sure', ''\]; expected a list of openings"),
    ],
)
def test_openings_that_are_none_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(None, None, [], "margin", **options)


def test_the_conf_file_lists_every_option_with_its_default() -> None:
    assert asdict(Margin(**conf("margin")["options"])) == asdict(Margin())
    assert {"name", *conf("margin")["options"]} == set(asdict(Margin()))
    assert conf("margin")["method"] == "top"
