"""Greedy openings: batching and padding change nothing, and texts stay with their prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neurofreeze.data import Example, read
from neurofreeze.data.batches import prompt_ids
from neurofreeze.evaluation.generation import continuation_ids, is_degenerate, openings


def alone(model: Any, tokenizer: Any, example: Example, max_new_tokens: int) -> str:
    """Greedy decoding by argmax, one token at a time, without generate, cache or padding."""
    prompt = prompt_ids(tokenizer, example)
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
        if token == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return read("bundled:lookalikes/evaluation", responses=False, limit=7)


def test_token_ids_go_up_to_the_one_that_ends_an_answer(
    tiny_model: Any, tiny_tokenizer: Any, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt_ids(tiny_tokenizer, example) for example in examples]
    whole = continuation_ids(tiny_model, tiny_tokenizer, prompts, max_new_tokens=8, batch_size=7)
    end = whole[0][2]
    monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", end)
    found = continuation_ids(tiny_model, tiny_tokenizer, prompts, max_new_tokens=8, batch_size=7)
    assert found == [ids[: ids.index(end) + 1] if end in ids else ids for ids in whole]
    assert len({len(ids) for ids in found}) > 1, "some must end before others"


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_openings_equal_greedy_decoding_one_by_one(
    tiny_model: Any, tiny_tokenizer: Any, examples: list[Example], batch_size: int
) -> None:
    expected = [alone(tiny_model, tiny_tokenizer, example, 8) for example in examples]
    assert len(set(expected)) > 3, "the texts must differ for their order to show"
    found = openings(tiny_model, tiny_tokenizer, examples, max_new_tokens=8, batch_size=batch_size)
    assert found == expected


def test_progress_is_told_once_a_batch(tiny_model: Any, tiny_tokenizer: Any, examples: list[Example]) -> None:
    told: list[int] = []
    openings(tiny_model, tiny_tokenizer, examples, max_new_tokens=1, batch_size=3, progress=lambda: told.append(1))
    assert len(told) == 3


def test_sampling_settings_of_the_checkpoint_are_ignored(
    tiny_model: Any, tiny_tokenizer: Any, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = openings(tiny_model, tiny_tokenizer, examples[:3], max_new_tokens=6, batch_size=3)
    settings = {"do_sample": True, "num_beams": 3, "repetition_penalty": 9.0, "no_repeat_ngram_size": 2}
    for name, value in settings.items():
        monkeypatch.setattr(tiny_model.generation_config, name, value)
    assert openings(tiny_model, tiny_tokenizer, examples[:3], max_new_tokens=6, batch_size=3) == expected


def test_no_examples_give_no_texts(tiny_model: Any, tiny_tokenizer: Any) -> None:
    assert openings(tiny_model, tiny_tokenizer, [], max_new_tokens=4, batch_size=2) == []


@pytest.mark.parametrize("text", ["", "  \n", "no no no no no no", "a b a b a b", "the The THE the the the cat"])
def test_degenerate(text: str) -> None:
    assert is_degenerate(text)


@pytest.mark.parametrize("text", ["Yes.", "no no no", "a b c a b c", "I cannot help with that, sorry."])
def test_not_degenerate(text: str) -> None:
    assert not is_degenerate(text)
