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
    """What follows each prompt of token ids under greedy decoding, and the prompt's last `keep` tokens before it."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    texts = [""] * len(prompts)
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [prompts[index] for index in indices]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        output = model.generate(
            **batch,
            generation_config=_greedy(model, tokenizer, max_new_tokens),
        )
        completions = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] - keep :], skip_special_tokens=True)
        for index, text in zip(indices, completions, strict=True):
            texts[index] = text.strip()
        if progress is not None:
            progress()
    return texts


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
