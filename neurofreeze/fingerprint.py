"""A digest of chosen elements that does not depend on how they are sharded or at what precision they are stored.

The digest is the sum, modulo 2^64, over all chosen elements of mix(bits, position), where position is the element's
linear index in the whole parameter, salted with the parameter's name. A sum has no order, so shards may be digested
anywhere and added. `mix` is a bijection of the bits for every position: one changed element always changes the sum.
It detects accidents, not forgery; `neurofreeze verify` compares the bits themselves.
"""

from __future__ import annotations

import hashlib

import torch

from neurofreeze.geometry import Block, stack_shape

MODULUS = 2**64


def digest(name: str, shape: tuple[int, ...], block: Block, axis: int, index: torch.Tensor, flat: torch.Tensor) -> int:
    """Digest of the chosen rows or columns of one block, an integer in [0, 2^64).

    Args:
        name: the parameter's canonical name.
        shape: the whole parameter's shape.
        block: the block's place in the parameter and in `flat`.
        axis: 0 if `index` names rows of the block, 1 if columns.
        index: int64 [n], local to the block, on the device of `flat`.
        flat: 1-D storage that holds the block. Half precisions are widened to float32, which is exact.
    """
    matrix = flat[block.offset : block.offset + block.rows * block.cols].view(block.rows, block.cols)
    across = block.cols if axis == 0 else block.rows
    _, height, width = stack_shape(shape)
    other = torch.arange(across, device=flat.device)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for part in index.split(max(1, _chunk(flat.device) // across)):
        values = matrix.index_select(axis, part)
        rows, cols = (part[:, None], other[None]) if axis == 0 else (other[:, None], part[None])
        position = (block.matrix * height + rows + block.row) * width + (cols + block.col)
        total += _mix(_bits(values) ^ _mix(position + _salt(name))).sum()
    return int(total) % MODULUS


def text(value: int) -> str:
    """The digest as 16 hexadecimal digits."""
    return f"{value % MODULUS:016x}"


def _chunk(device: torch.device) -> int:
    # Elements at a time: few enough for a CPU's cache, enough to keep a GPU busy.
    return 1 << (16 if device.type == "cpu" else 22)


def _bits(values: torch.Tensor) -> torch.Tensor:
    if values.dtype == torch.float64:
        return values.view(torch.int64)
    return values.to(torch.float32).view(torch.int32).to(torch.int64)


def _mix(x: torch.Tensor) -> torch.Tensor:
    # The finaliser of SplitMix64 (Steele, Lea, Flood 2014), in wrapping signed arithmetic.
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - MODULUS if value >= MODULUS // 2 else value


def _salt(name: str) -> int:
    return _signed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
