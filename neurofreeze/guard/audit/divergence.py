"""How far an intervention moves the next token's distribution, position by position of the original's own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F

from neurofreeze.data.batches import Batch, pad
from neurofreeze.errors import ModelError


@torch.no_grad()
def divergences(
    original: Any,
    changed: Callable[[], AbstractContextManager[Any]],
    rows: Sequence[tuple[list[int], int]],
    batch_size: int,
    pad_token_id: int | None,
    progress: Callable[[], None] | None = None,
) -> list[list[float]]:
    """KL(original || changed) in nats at every position of every row's answer.

    KL_t = sum over tokens of p_t (log p_t - log q_t), with p_t and q_t the two models' distributions of the answer's
    t-th token given the prompt and the tokens before.

    Args:
        original: the model without the intervention.
        changed: yields the model with it; it is entered once a batch, and left before the original computes.
        rows: (token ids of the prompt and the answer, where the answer begins).
        batch_size: rows at a time.
        pad_token_id: for shorter rows.
        progress: called after every batch.

    Raises:
        ModelError: if the two models have other vocabularies.
    """
    found: list[list[float]] = [[] for _ in rows]
    for batch in pad(rows, pad_token_id, batch_size):
        p = _log_probs(original, batch)
        with changed() as model:
            q = _log_probs(model, batch)
        if p.shape != q.shape:
            raise ModelError(
                f"the model has {p.shape[-1]} tokens, with the intervention {q.shape[-1]}; an audit compares models "
                "with one vocabulary"
            )
        each = (p.exp() * (p - q)).sum(-1, dtype=torch.float64).clamp(min=0).cpu()
        for index, part in zip(batch.indices, each.split(batch.response_mask[:, 1:].sum(1).tolist()), strict=True):
            found[index] = part.tolist()
        if progress is not None:
            progress()
    return found


def _log_probs(model: Any, batch: Batch) -> torch.Tensor:
    """Float32 [answer positions of all rows, vocabulary]."""
    on_device = batch.to(model.device)
    logits = model(input_ids=on_device.input_ids, attention_mask=on_device.attention_mask, use_cache=False).logits
    return F.log_softmax(logits[:, :-1][on_device.response_mask[:, 1:]].float(), dim=-1)
