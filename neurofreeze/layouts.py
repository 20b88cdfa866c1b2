"""Which rows of a fused matrix, or of a stack of experts, belong to which neuron. Pure."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from neurofreeze.architectures import FusedLayout
from neurofreeze.neurons import IndexArray


def grouped(heads: int, kv_heads: int, dim: int) -> tuple[IndexArray, IndexArray]:
    """Rows of each query head in q, and of the KV head it uses in k and v; int64 [heads, dim] both."""
    query = np.arange(heads * dim).reshape(heads, dim)
    key_value = np.arange(kv_heads * dim).reshape(kv_heads, dim)
    return query, key_value.repeat(heads // kv_heads, axis=0)


def gated(heads: int, dim: int) -> tuple[IndexArray, IndexArray]:
    """Rows of each head's query and gate in q_proj, int64 [heads, 2 * dim], and of its gate alone, [heads, dim]."""
    rows = np.arange(heads * 2 * dim).reshape(heads, 2 * dim)
    return rows, rows[:, dim:]


def fused_qkv(layout: FusedLayout, heads: int, kv_heads: int, dim: int) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Rows of q, k and v of each query head in one fused matrix; int64 [heads, dim] each.

    Args:
        layout: see `neurofreeze.architectures.FusedLayout`.
        heads: number of query heads.
        kv_heads: number of KV heads, a divisor of `heads`.
        dim: channels of a head.
    """
    group = heads // kv_heads
    rows = np.arange((heads + 2 * kv_heads) * dim).reshape(-1, dim)
    if layout == "blocks":
        query, key, value = np.split(rows, [heads, heads + kv_heads])
    else:
        parts = rows.reshape(kv_heads, group + 2, dim)
        query, key, value = parts[:, :-2].reshape(heads, dim), parts[:, -2], parts[:, -1]
    return query, key.repeat(group, axis=0), value.repeat(group, axis=0)


@lru_cache
def experts(number: int, channels: int, parts: int = 1, packed: bool = True) -> IndexArray:
    """Lines of each neuron in a stack of experts, counted through; int64 [number * channels, parts], read-only.

    An MLP is a stack of one.

    Args:
        number: of experts.
        channels: neurons of an expert.
        parts: lines of a neuron: 2 where gate and up are in one matrix.
        packed: whether the parts follow one another ([gate; up]) or alternate (gate, up, gate, up ...).
    """
    # Kept, since the layers of a large model have the same millions of lines.
    lines = np.arange(number * parts * channels)
    if packed:
        index = lines.reshape(number, parts, channels).swapaxes(1, 2).reshape(-1, parts)
    else:
        index = lines.reshape(-1, parts)
    index.flags.writeable = False
    return index
