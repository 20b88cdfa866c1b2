"""One number a neuron for each prompt: its activations at the prompt's tokens, pooled."""

from __future__ import annotations

from typing import Literal

import torch

from neurofreeze.activations import Flow

Pooling = Literal["mean", "last"]


def token_weights(attention: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """How much each token counts: float32 [rows, length], 1 in all for a row, 0 on padding.

    Args:
        attention: bool [rows, length], False on padding, wherever that is.
        pooling: "mean" for all tokens alike, "last" for the last one only.
    """
    if pooling == "mean":
        return attention.float() / attention.sum(1, keepdim=True).clamp(min=1)
    positions = torch.arange(attention.shape[1], device=attention.device)
    last = positions.where(attention, -1).amax(1, keepdim=True)
    return (positions == last).float()


def pooled(flow: Flow, weights: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Each neuron's activation over each row's tokens, float32 or wider [rows, neurons].

    Args:
        flow: into the matrix through which the neurons write.
        weights: float32 [rows, length], of the tokens. A token that does not reach an expert counts 0 for its neurons.
        index: int64 [neurons, width], the columns of that matrix that are each neuron's, as in `Member.index`. Of a
            neuron with several, such as a head, the root of their mean square counts.
    """
    if flow.routing is None:
        # OPT's MLP gets its tokens as [rows * length, channels].
        found = _strength(flow.values.view(*weights.shape, -1), index)
        return torch.einsum("rl,rln->rn", weights.to(found.dtype), found)
    tokens, counts = flow.routing
    channels = flow.values.shape[-1]
    total: torch.Tensor | None = None
    experts = index[:, 0] // channels
    for expert in experts.unique().tolist():
        own = (experts == expert).nonzero()[:, 0]
        start = sum(counts[:expert])
        part = slice(start, start + counts[expert])
        found = _strength(flow.values[part], index[own] % channels)
        if total is None:
            total = found.new_zeros(len(weights), len(index))
        weighted = found * weights.flatten()[tokens[part], None].to(found.dtype)
        total[:, own] = found.new_zeros(len(weights), len(own)).index_add(0, tokens[part] // weights.shape[1], weighted)
    assert total is not None
    return total


def _strength(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    chosen = values.index_select(-1, index.flatten())
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32)).unflatten(-1, tuple(index.shape))
    return chosen[..., 0] if index.shape[1] == 1 else chosen.square().mean(-1).sqrt()
