"""Batches: padding on the right, the answer's tokens and no others marked, longest conversations first."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neurofreeze.data import Example
from neurofreeze.data.batches import Batch, batches, pad, prompt_ids

EXAMPLES = [
    Example.of("Where is my card?", "It is on its way to your branch."),
    Example.of("Hi", "Hello, how can I help you with your account today?"),
    Example((("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Fees.")), "None."),
    Example.of("Can I send euros, dollars and yen from my account to my other account?", "Yes"),
    Example.of("Card?", "Yes"),
]


def rendered(tokenizer: Any, example: Example) -> tuple[str, int]:
    """The whole conversation as text, and where in it the answer begins."""
    messages = [*example.messages, {"role": "assistant", "content": example.response}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return text, text.rindex(str(example.response))


def answer_tokens(tokenizer: Any, example: Example) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them hold at least one character of the answer or of what the template puts after it."""
    text, start = rendered(tokenizer, example)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], [end > start for _, end in found["offset_mapping"]]


def by_index(found: list[Batch]) -> dict[int, tuple[list[int], list[int], list[bool]]]:
    return {
        index: (batch.input_ids[row].tolist(), batch.attention_mask[row].tolist(), batch.response_mask[row].tolist())
        for batch in found
        for row, index in enumerate(batch.indices)
    }


def test_every_example_is_in_exactly_one_row(tiny_tokenizer: Any) -> None:
    indices = [index for batch in batches(tiny_tokenizer, EXAMPLES, 2) for index in batch.indices]
    assert sorted(indices) == list(range(len(EXAMPLES)))


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_a_row_is_the_conversation_then_padding(tiny_tokenizer: Any, index: int) -> None:
    ids, attention, _ = by_index(list(batches(tiny_tokenizer, EXAMPLES, 2)))[index]
    expected, _ = answer_tokens(tiny_tokenizer, EXAMPLES[index])
    padding = len(ids) - len(expected)
    assert ids == expected + [tiny_tokenizer.pad_token_id] * padding
    assert attention == [1] * len(expected) + [0] * padding


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_response_mask_is_the_answer_with_the_template_s_end(tiny_tokenizer: Any, index: int) -> None:
    ids, attention, response = by_index(list(batches(tiny_tokenizer, EXAMPLES, 2)))[index]
    _, expected = answer_tokens(tiny_tokenizer, EXAMPLES[index])
    assert response == expected + [False] * (len(ids) - len(expected))
    last = sum(attention) - 1
    assert response[last]
    assert ids[last] == tiny_tokenizer.eos_token_id


def test_only_the_last_answer_of_several_turns_is_marked(tiny_tokenizer: Any) -> None:
    ids, _, response = by_index(list(batches(tiny_tokenizer, EXAMPLES, 1)))[2]
    marked = [token for token, chosen in zip(ids, response, strict=True) if chosen]
    assert tiny_tokenizer.decode(marked).strip() == "None.</s>"


def test_longest_first(tiny_tokenizer: Any) -> None:
    lengths = [
        length for batch in batches(tiny_tokenizer, EXAMPLES, 2) for length in batch.attention_mask.sum(1).tolist()
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 2


def test_a_batch_is_no_longer_than_its_longest_row(tiny_tokenizer: Any) -> None:
    for batch in batches(tiny_tokenizer, EXAMPLES, 2):
        assert batch.input_ids.shape[1] == int(batch.attention_mask.sum(1).max())


def test_the_last_batch_holds_what_is_left(tiny_tokenizer: Any) -> None:
    assert [len(batch.indices) for batch in batches(tiny_tokenizer, EXAMPLES, 2)] == [2, 2, 1]
    assert [len(batch.indices) for batch in batches(tiny_tokenizer, EXAMPLES, 9)] == [5]
    assert list(batches(tiny_tokenizer, [], 2)) == []


def test_max_length_cuts_the_end(tiny_tokenizer: Any) -> None:
    for index, (ids, attention, response) in by_index(list(batches(tiny_tokenizer, EXAMPLES, 2, 8))).items():
        expected, answer = answer_tokens(tiny_tokenizer, EXAMPLES[index])
        kept = sum(attention)
        assert kept == min(8, len(expected))
        assert ids[:kept] == expected[:kept]
        assert response[:kept] == answer[:kept]


def test_a_prompt_longer_than_max_length_leaves_no_answer(tiny_tokenizer: Any) -> None:
    (batch,) = batches(tiny_tokenizer, EXAMPLES[3:4], 1, 5)
    assert batch.input_ids.shape == (1, 5)
    assert not batch.response_mask.any()


def test_dtypes(tiny_tokenizer: Any) -> None:
    batch = next(iter(batches(tiny_tokenizer, EXAMPLES, 2))).to("cpu")
    assert [tensor.dtype for tensor in batch[1:]] == [torch.int64, torch.int64, torch.bool]


def test_prompt_ids_end_where_the_assistant_s_turn_begins(tiny_tokenizer: Any) -> None:
    words = tiny_tokenizer.decode(prompt_ids(tiny_tokenizer, EXAMPLES[2])).split()
    assert " ".join(words) == "system: Be brief.</s> user: Hi</s> assistant: Hello</s> user: Fees.</s> assistant:"


def test_equally_long_rows_keep_their_order() -> None:
    (batch,) = pad([([5, 6], 1), ([7, 8, 9], 1), ([3, 4], 0)], 0, 3)
    assert batch.indices == [1, 0, 2]
    assert batch.input_ids.tolist() == [[7, 8, 9], [5, 6, 0], [3, 4, 0]]
    assert batch.response_mask.tolist() == [[False, True, True], [False, True, False], [True, True, False]]
