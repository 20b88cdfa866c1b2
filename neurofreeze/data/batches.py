"""Examples as padded batches of token ids, through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from neurofreeze.data.examples import Example


class Batch(NamedTuple):
    """Right-padded token ids.

    Attributes:
        indices: which of the examples these rows are.
        input_ids: int64 [rows, length].
        attention_mask: int64 [rows, length], 0 on padding.
        response_mask: bool [rows, length], True on the tokens of the answer.
    """

    indices: list[int]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.indices, *(tensor.to(device) for tensor in self[1:]))


def prompt_ids(tokenizer: Any, example: Example) -> list[int]:
    """Token ids of the conversation up to where the answer begins."""
    return tokenizer.apply_chat_template(example.messages, add_generation_prompt=True, tokenize=True, return_dict=False)


def batches(
    tokenizer: Any, examples: Sequence[Example], batch_size: int, max_length: int | None = None
) -> Iterator[Batch]:
    """Whole conversations, longest first so that padding is small and memory peaks at once.

    Args:
        tokenizer: with a chat template and a padding token.
        examples: with answers.
        batch_size: rows a batch.
        max_length: tokens kept of each conversation.
    """
    rows = []
    for example in examples:
        prompt = prompt_ids(tokenizer, example)
        whole = tokenizer.apply_chat_template(
            [*example.messages, {"role": "assistant", "content": example.response}], tokenize=True, return_dict=False
        )
        start = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
        rows.append((whole[:max_length], start))
    yield from pad(rows, tokenizer.pad_token_id, batch_size)


def pad(rows: Sequence[tuple[list[int], int]], pad_token_id: int, batch_size: int) -> Iterator[Batch]:
    """Batches of (token ids, where the answer begins) pairs, longest first."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]))
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        length = len(rows[indices[0]][0])
        ids = torch.full((len(indices), length), pad_token_id, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        response = torch.zeros_like(ids, dtype=torch.bool)
        for row, index in enumerate(indices):
            tokens, start = rows[index]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            attention[row, : len(tokens)] = 1
            response[row, start : len(tokens)] = True
        yield Batch(indices, ids, attention, response)
