"""Places in a parameter, against NumPy slicing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofreeze.errors import FreezeError
from neurofreeze.geometry import Block, flat_slice, local_index, rectangle, stack_shape, whole
from neurofreeze.neurons import Selection


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, int], Selection, Block]:
    rows, cols = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    axis = draw(st.integers(0, 1))
    index = sorted(draw(st.sets(st.integers(0, (rows, cols)[axis] - 1))))
    row, col = draw(st.integers(0, rows)), draw(st.integers(0, cols))
    height, width = draw(st.integers(0, rows - row)), draw(st.integers(0, cols - col))
    selection = Selection(axis, np.array(index, dtype=np.int64))
    return (rows, cols), selection, Block(draw(st.integers(0, 5)), height, width, row, col)


@given(cases())
def test_local_index_marks_in_a_block_what_the_selection_marks_in_the_whole(case: Any) -> None:
    shape, selection, block = case
    marked = np.zeros(shape, bool)
    np.moveaxis(marked, selection.axis, 0)[selection.index] = True
    local = np.zeros((block.rows, block.cols), bool)
    np.moveaxis(local, selection.axis, 0)[local_index(selection, block)] = True
    expected = marked[block.row : block.row + block.rows, block.col : block.col + block.cols]
    assert np.array_equal(local, expected)


@given(cases())
def test_local_indices_are_sorted_int64(case: Any) -> None:
    _, selection, block = case
    found = local_index(selection, block)
    assert found.dtype == np.int64
    assert found.tolist() == sorted(set(found.tolist()))


def test_the_whole_is_one_block() -> None:
    assert whole((5, 7)) == (Block(0, 5, 7, 0, 0),)
    assert whole((5,)) == (Block(0, 5, 1, 0, 0),)
    assert local_index(Selection(1, np.array([0, 3, 6])), *whole((5, 7))).tolist() == [0, 3, 6]


def test_a_stack_is_one_block_a_matrix() -> None:
    assert whole((2, 5, 7)) == (Block(0, 5, 7, 0, 0, 0), Block(35, 5, 7, 0, 0, 1))


def test_a_vector_is_a_matrix_of_one_column() -> None:
    assert stack_shape((7,)) == (1, 7, 1)
    assert stack_shape((7, 3)) == (1, 7, 3)


@pytest.mark.parametrize("shape", [(), (2, 3, 4, 5)])
def test_other_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FreezeError, match=r"expected one to three dimensions"):
        stack_shape(shape)


SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)


def dense_from(blocks: tuple[Block, ...], local: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The parameter with each block's stored values at the block's place, -1 elsewhere."""
    found = np.full(stack_shape(shape), -1)
    for block in blocks:
        values = local[block.offset : block.offset + block.numel].reshape(block.rows, block.cols)
        found[block.matrix, block.row : block.row + block.rows, block.col : block.col + block.cols] = values
    return found.reshape(shape)


@given(SHAPES, st.integers(1, 6), st.data())
def test_flat_slices_of_all_ranks_make_up_the_parameter_and_nothing_else(
    shape: tuple[int, ...], world_size: int, data: st.DataObject
) -> None:
    size = int(np.prod(shape))
    share = -(-size // world_size) + data.draw(st.integers(0, 3))  # padded, as ZeRO's last rank is
    values = np.arange(size)
    seen = np.full(shape, -1)
    for rank in range(world_size):
        start = rank * share
        local = values[start : start + share]
        blocks = flat_slice(shape, start, share)
        assert sum(block.numel for block in blocks) == len(local)
        seen = np.maximum(seen, dense_from(blocks, local, shape))
    assert np.array_equal(seen, values.reshape(shape))


@given(SHAPES, st.data())
def test_a_flat_slice_is_at_most_three_blocks_a_matrix(shape: tuple[int, ...], data: st.DataObject) -> None:
    size = int(np.prod(shape))
    start = data.draw(st.integers(0, size))
    blocks = flat_slice(shape, start, data.draw(st.integers(0, size)))
    for matrix in range(stack_shape(shape)[0]):
        assert sum(block.matrix == matrix for block in blocks) <= 3


@given(SHAPES, st.data())
def test_a_rectangle_lies_where_numpy_cuts_it(shape: tuple[int, ...], data: st.DataObject) -> None:
    offset = [data.draw(st.integers(0, length)) for length in shape]
    local = [data.draw(st.integers(0, length - begin)) for length, begin in zip(shape, offset, strict=True)]
    values = np.arange(int(np.prod(shape))).reshape(shape)
    cut = tuple(slice(begin, begin + length) for begin, length in zip(offset, local, strict=True))
    expected = np.full(shape, -1)
    expected[cut] = values[cut]
    blocks = rectangle(shape, local, offset)
    assert np.array_equal(dense_from(blocks, values[cut].reshape(-1), shape), expected)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 1), st.data())
def test_a_dense_mask_cut_into_flat_shards_is_what_each_shard_indexes(
    rows: int, cols: int, world_size: int, axis: int, data: st.DataObject
) -> None:
    index = sorted(data.draw(st.sets(st.integers(0, (rows, cols)[axis] - 1))))
    selection = Selection(axis, np.array(index, dtype=np.int64))
    dense = np.zeros((rows, cols), bool)
    np.moveaxis(dense, axis, 0)[index] = True
    share = -(-rows * cols // world_size)
    for rank in range(world_size):
        expected = dense.reshape(-1)[rank * share : (rank + 1) * share]
        found = np.zeros_like(expected)
        for block in flat_slice((rows, cols), rank * share, share):
            view = found[block.offset : block.offset + block.numel].reshape(block.rows, block.cols)
            np.moveaxis(view, axis, 0)[local_index(selection, block)] = True
        assert np.array_equal(found, expected)
