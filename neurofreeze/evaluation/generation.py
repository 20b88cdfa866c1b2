"""Greedy openings of answers, batched by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from neurofreeze.data.batches import prompt_ids
from neurofreeze.data.examples import Example


def openings(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    prefill: str = "",
    progress: Callable[[], None] | None = None,
) -> list[str]:
    """The first `max_new_tokens` tokens of each greedy answer, as text, in the order of the examples.

    With `prefill`, every answer is made to begin with it, and it is part of the text.
    """
    beginning = tokenizer(prefill, add_special_tokens=False)["input_ids"] if prefill else []
    prompts = [prompt_ids(tokenizer, example) + beginning for example in examples]
    return continuations(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        keep=len(beginning),
        progress=progress,
    )


# Not inference_mode: a model in training must be able to go on with the weights that its engine gathers here.
@torch.no_grad()
def continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    keep: int = 0,
    progress: Callable[[], None] | None = None,
) -> list[str]:
    """What follows each prompt of token ids under greedy decoding, as text, after the prompt's last `keep` tokens."""
    found = continuation_ids(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    return [
        tokenizer.decode(prompt[len(prompt) - keep :] + ids, skip_special_tokens=True).strip()
        for prompt, ids in zip(prompts, found, strict=True)
    ]


# Not inference_mode: a model in training must be able to go on with the weights that its engine gathers here.
@torch.no_grad()
def continuation_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[], None] | None = None,
) -> list[list[int]]:
    """What follows each prompt under greedy decoding, as token ids up to and with the one that ends the answer."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    greedy = _greedy(model, tokenizer, max_new_tokens)
    ends = {greedy.eos_token_id} if isinstance(greedy.eos_token_id, int) else set(greedy.eos_token_id or ())
    found: list[list[int]] = [[]] * len(prompts)
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [prompts[index] for index in indices]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        output = model.generate(**batch, generation_config=greedy)
        for index, ids in zip(indices, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(ids, 1) if token in ends), len(ids))
            found[index] = ids[:end]  # what comes after is padding
        if progress is not None:
            progress()
    return found


def is_degenerate(completion: str) -> bool:
    """Whether an opening is empty or mostly repeats itself: fewer than half of its words are distinct."""
    words = completion.lower().split()
    return not words or (len(words) >= 6 and len(set(words)) * 2 < len(words))


def _greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> Any:
    from transformers import GenerationConfig

    # What is left unset comes from the checkpoint's generation_config.json, and some have a repetition penalty there.
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
