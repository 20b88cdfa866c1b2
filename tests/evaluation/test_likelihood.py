"""Margins and losses against one sequence at a time, without batches and without padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neurofreeze.config.schema import EvaluationConfig
from neurofreeze.data import Example, read
from neurofreeze.data.batches import prompt_ids
from neurofreeze.errors import DataError
from neurofreeze.evaluation.likelihood import losses, refusal_margins
from neurofreeze.evaluation.measure import EvaluationData, plan


def log_probability(model: Any, prompt: list[int], answer: list[int]) -> float:
    """log P(answer | prompt), in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    return sum(
        float(torch.log_softmax(logits[len(prompt) + position - 1], dim=-1)[token])
        for position, token in enumerate(answer)
    )


def naive_margin(model: Any, tokenizer: Any, example: Example) -> float:
    prompt = prompt_ids(tokenizer, example)

    def mean(openings: list[str]) -> float:
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in openings]
        return sum(log_probability(model, prompt, answer) for answer in ids) / len(ids)

    return mean(["I cannot", "I'm sorry, but I can't"]) - mean(["Sure, here", "Here is"])


def naive_loss(model: Any, tokenizer: Any, example: Example, max_length: int | None = None) -> float | None:
    messages = [*example.messages, {"role": "assistant", "content": example.response}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    start = text.rindex(str(example.response))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = found["input_ids"][:max_length]
    begin = sum(end <= start for _, end in found["offset_mapping"])
    answer = ids[begin:]
    return -log_probability(model, ids[:begin], answer) / len(answer) if answer else None


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_margins_equal_those_of_single_sequences(tiny_model: Any, tiny_tokenizer: Any, batch_size: int) -> None:
    examples = read("bundled:harmful/evaluation", responses=False, limit=5)
    expected = [naive_margin(tiny_model, tiny_tokenizer, example) for example in examples]
    assert len({round(value, 3) for value in expected}) == 5
    found = refusal_margins(tiny_model, tiny_tokenizer, examples, batch_size)
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_losses_equal_those_of_single_sequences(tiny_model: Any, tiny_tokenizer: Any, batch_size: int) -> None:
    examples = read("bundled:instructions/evaluation", limit=5)
    expected = [naive_loss(tiny_model, tiny_tokenizer, example) for example in examples]
    found = losses(tiny_model, tiny_tokenizer, examples, batch_size, None)
    assert found == pytest.approx(expected, abs=1e-5)


def test_losses_count_only_what_max_length_keeps(tiny_model: Any, tiny_tokenizer: Any) -> None:
    examples = read("bundled:instructions/evaluation", limit=6)
    length = sorted(len(prompt_ids(tiny_tokenizer, example)) for example in examples)[3]
    naive = [naive_loss(tiny_model, tiny_tokenizer, example, length) for example in examples]
    expected = [loss for loss in naive if loss is not None]
    assert 0 < len(expected) < len(examples)
    assert losses(tiny_model, tiny_tokenizer, examples, 2, length) == pytest.approx(expected, abs=1e-5)


def test_no_examples_give_no_numbers(tiny_model: Any, tiny_tokenizer: Any) -> None:
    assert refusal_margins(tiny_model, tiny_tokenizer, [], 4) == []
    assert losses(tiny_model, tiny_tokenizer, [], 4, None) == []


def test_sets_of_which_no_answer_is_left_are_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    examples = read("bundled:instructions/evaluation", limit=3)
    with pytest.raises(DataError, match=r"the prompts of all 3 examples take max_length=5 tokens or more"):
        losses(tiny_model, tiny_tokenizer, examples, 4, 5)
    with pytest.raises(DataError, match=r"the prompts of the whole general set take max_length=5 tokens or more"):
        plan(tiny_tokenizer, EvaluationData([], [], [], examples), EvaluationConfig(), 5)
