"""Where a piece of a parameter lies in the whole, and what of it a selection names. Pure.

A parameter is a stack of matrices: a vector of n is one n x 1 matrix, an expert weight [E, rows, cols] is E matrices.
What a rank holds of it is a few blocks, each a rectangle of one matrix: one for a rectangular shard, at most three a
matrix for a slice of the flattened parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from neurofreeze.errors import FreezeError
from neurofreeze.neurons import ELEMENTS, IndexArray, Selection


class Block(NamedTuple):
    """A rows x cols rectangle of a matrix, stored row by row from `offset` in a 1-D tensor; (row, col) is its place."""

    offset: int
    rows: int
    cols: int
    row: int
    col: int
    matrix: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.rows * self.cols


def stack_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """A parameter's shape as (matrices, rows, cols).

    Raises:
        FreezeError: if it has no or more than three dimensions.
    """
    if len(shape) == 1:
        return 1, shape[0], 1
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise FreezeError(
        f"a parameter of shape {tuple(shape)} cannot be frozen by neuron; expected one to three dimensions"
    )


def whole(shape: Sequence[int]) -> tuple[Block, ...]:
    """The entire parameter, stored contiguously."""
    return rectangle(shape, shape, [0] * len(shape))


def rectangle(shape: Sequence[int], local_shape: Sequence[int], offset: Sequence[int]) -> tuple[Block, ...]:
    """The rectangular shard of `local_shape` at `offset`, stored contiguously; () where it is empty.

    Args:
        shape: of the whole parameter.
        local_shape: of the shard, with as many dimensions.
        offset: of its first element in each dimension.
    """
    stack_shape(shape)
    matrices, rows, cols = stack_shape(local_shape)
    first, row, col = (0, *offset, 0) if len(shape) == 1 else (0, *offset) if len(shape) == 2 else tuple(offset)
    if matrices * rows * cols == 0:
        return ()
    return tuple(Block(i * rows * cols, rows, cols, row, col, first + i) for i in range(matrices))


def flat_slice(shape: Sequence[int], start: int, numel: int) -> tuple[Block, ...]:
    """Elements [start, start + numel) of the parameter flattened row by row, stored contiguously.

    What lies beyond the parameter's end is padding, in no block.
    """
    matrices, rows, cols = stack_shape(shape)
    size = rows * cols
    end = min(start + numel, matrices * size)
    blocks: list[Block] = []
    for matrix in range(start // size if size else 0, matrices):
        low, high = max(start, matrix * size), min(end, (matrix + 1) * size)
        if low >= high:
            break
        blocks += _slice_of_matrix(low - start, low - matrix * size, high - matrix * size, cols, matrix)
    return tuple(blocks)


def local_index(selection: Selection, block: Block, shape: Sequence[int]) -> IndexArray:
    """Rows (axis 0) or columns (axis 1) of `block` that the selection names, counted from the block's own origin.

    Args:
        selection: of a parameter.
        block: a part of it.
        shape: of the whole parameter.
    """
    _, height, width = stack_shape(shape)
    if selection.axis == 0:
        first, length = block.matrix * height + block.row, block.rows
    else:
        first, length = block.matrix * width + block.col, block.cols
    begin, end = np.searchsorted(selection.index, (first, first + length))
    return selection.index[begin:end] - first


def chosen(selection: Selection, block: Block, shape: Sequence[int]) -> Iterator[tuple[Block, Selection]]:
    """What of `block` the selection names, as rows or columns of rectangles, counted from each rectangle's origin.

    The rectangle is the block itself, but for single elements: those are columns of its rows, one by one.

    Args:
        selection: of a parameter.
        block: a part of it.
        shape: of the whole parameter.
    """
    if selection.axis != ELEMENTS:
        index = local_index(selection, block, shape)
        if len(index):
            yield block, Selection(selection.axis, index)
        return
    _, height, width = stack_shape(shape)
    for row in range(block.rows):
        first = (block.matrix * height + block.row + row) * width + block.col
        begin, end = np.searchsorted(selection.index, (first, first + block.cols))
        if begin < end:
            line = block._replace(offset=block.offset + row * block.cols, rows=1, row=block.row + row)
            yield line, Selection(1, selection.index[begin:end] - first)


def _slice_of_matrix(offset: int, low: int, high: int, cols: int, matrix: int) -> Iterator[Block]:
    """Elements [low, high) of one matrix: a partial first row, whole rows, a partial last row."""
    while low < high:
        row, col = divmod(low, cols)
        rows = (high - low) // cols if col == 0 else 0
        width = cols if rows else min(cols - col, high - low)
        block = Block(offset, max(rows, 1), width, row, col, matrix)
        yield block
        offset, low = offset + block.numel, low + block.numel
