"""Where a piece of a parameter lies in the whole, and which of its rows or columns a selection names. Pure."""

from __future__ import annotations

from typing import NamedTuple

from neurofreeze.errors import FreezeError
from neurofreeze.neurons import IndexArray, Selection


class Block(NamedTuple):
    """A rows x cols piece of a matrix, stored row by row from `offset` in a 1-D tensor; (row, col) is its place."""

    offset: int
    rows: int
    cols: int
    row: int
    col: int


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A parameter's shape as a matrix: a vector of n is n x 1."""
    if len(shape) not in (1, 2):
        raise FreezeError(f"a parameter of shape {shape} cannot be frozen by neuron; expected one or two dimensions")
    return (shape[0], shape[1]) if len(shape) == 2 else (shape[0], 1)


def whole(shape: tuple[int, ...]) -> Block:
    """The block that is the entire parameter."""
    rows, cols = matrix_shape(shape)
    return Block(0, rows, cols, 0, 0)


def local_index(selection: Selection, block: Block) -> IndexArray:
    """Rows (axis 0) or columns (axis 1) of `block` that the selection names, counted from the block's own origin."""
    start, length = (block.row, block.rows) if selection.axis == 0 else (block.col, block.cols)
    inside = selection.index[(selection.index >= start) & (selection.index < start + length)]
    return inside - start
