"""Examples as padded batches of token ids, through the tokenizer's own chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError

from neurofreeze.data.examples import Example
from neurofreeze.errors import DataError

# For models that come without a chat template (GPT-2, OPT, Pythia): plain text roles.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ': ' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


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


def chat_template(tokenizer: Any) -> str:
    """The template that conversations are put through.

    Raises:
        DataError: if the tokenizer has none.
    """
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise DataError(
            f"the tokenizer {name} has no chat template, or several and no default; set tokenizer.chat_template to the "
            "one that the model was trained with"
        ) from error


def template_record(tokenizer: Any) -> dict[str, Any]:
    """Which chat template it is, for a mask's config: the start of its SHA-256, and whether it is the model's own."""
    found = chat_template(tokenizer)
    return {"sha256": hashlib.sha256(found.encode()).hexdigest()[:16], "own": found != PLAIN_TEMPLATE}


def prompt_ids(tokenizer: Any, example: Example) -> list[int]:
    """Token ids of the conversation up to where the answer begins.

    Raises:
        DataError: if the tokenizer has no chat template, or one that takes no such conversation.
    """
    return _through_template(tokenizer, example.messages, add_generation_prompt=True)


def answer_ids(tokenizer: Any, example: Example) -> tuple[list[int], int]:
    """Token ids of the conversation with its answer, and where that begins.

    Raises:
        DataError: as `prompt_ids`.
    """
    prompt = prompt_ids(tokenizer, example)
    whole = _through_template(tokenizer, [*example.messages, {"role": "assistant", "content": example.response}])
    return whole, next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))


def _through_template(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    chat_template(tokenizer)
    try:
        found: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the model's chat template takes no conversation of {roles}: {error}") from error
    return found


def batches(
    tokenizer: Any, examples: Sequence[Example], batch_size: int, max_length: int | None = None
) -> Iterator[Batch]:
    """Whole conversations, longest first so that padding is small and memory peaks at once.

    Args:
        tokenizer: with a chat template; its padding side and padding token do not matter.
        examples: with answers.
        batch_size: rows a batch.
        max_length: tokens kept of each conversation.
    """
    rows = []
    for example in examples:
        ids, start = answer_ids(tokenizer, example)
        rows.append((ids[:max_length], start))
    yield from pad(rows, tokenizer.pad_token_id, batch_size)


def pad(rows: Sequence[tuple[list[int], int]], pad_token_id: int | None, batch_size: int) -> Iterator[Batch]:
    """Batches of (token ids, where the answer begins) pairs, longest first, padded on the right.

    What the padding is does not matter, since it is masked: a tokenizer without a padding token has 0 in its place.
    """
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]))
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        length = len(rows[indices[0]][0])
        ids = torch.full((len(indices), length), 0 if pad_token_id is None else pad_token_id, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        response = torch.zeros_like(ids, dtype=torch.bool)
        for row, index in enumerate(indices):
            tokens, start = rows[index]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            attention[row, : len(tokens)] = 1
            response[row, start : len(tokens)] = True
        yield Batch(indices, ids, attention, response)
