"""Places in a parameter, against NumPy slicing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofreeze.errors import FreezeError
from neurofreeze.geometry import Block, chosen, flat_slice, local_index, rectangle, stack_shape, whole
from neurofreeze.neurons import ELEMENTS, Selection

Dense = np.ndarray[Any, np.dtype[np.bool_]]


@st.composite
def selections(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Selection, Dense]:
    """Rows, columns or elements of a parameter, and the same as a dense mask set one by one."""
    stack = np.zeros(stack_shape(shape), bool)
    axis = draw(st.sampled_from((0, 1, ELEMENTS) if len(shape) > 1 else (0, ELEMENTS)))
    if axis == ELEMENTS:
        elements = sorted(draw(st.sets(st.integers(0, stack.size - 1))))
        stack.reshape(-1)[elements] = True
        return Selection(axis, np.array(elements, dtype=np.int64)), stack.reshape(shape)
    lines = stack.shape[axis + 1]
    chosen = draw(st.sets(st.tuples(st.integers(0, len(stack) - 1), st.integers(0, lines - 1))))
    for matrix, line in chosen:
        if axis == 0:
            stack[matrix, line, :] = True
        else:
            stack[matrix, :, line] = True
    index = sorted(matrix * lines + line for matrix, line in chosen)
    return Selection(axis, np.array(index, dtype=np.int64)), stack.reshape(shape)


SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)


def marked(selection: Selection, blocks: tuple[Block, ...], shape: tuple[int, ...], size: int) -> Dense:
    """What the selection marks in a 1-D storage of `size` elements that holds `blocks`."""
    found = np.zeros(size, bool)
    for block in blocks:
        for part, (axis, index) in chosen(selection, block, shape):
            assert index.dtype == np.int64
            assert len(index)
            assert index.tolist() == sorted(set(index.tolist()))
            view = found[part.offset : part.offset + part.numel].reshape(part.rows, part.cols)
            np.moveaxis(view, axis, 0)[index] = True
    return found


@given(SHAPES, st.data())
def test_what_is_chosen_of_a_block_is_said_at_its_place_in_the_parameter(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    selection, dense = data.draw(selections(shape))
    offset = [data.draw(st.integers(0, length)) for length in shape]
    local = [data.draw(st.integers(0, length - begin)) for length, begin in zip(shape, offset, strict=True)]
    found = np.zeros(stack_shape(shape), bool)
    for block in rectangle(shape, local, offset):
        for part, (axis, index) in chosen(selection, block, shape):
            cut = found[part.matrix, part.row : part.row + part.rows, part.col : part.col + part.cols]
            np.moveaxis(cut, axis, 0)[index] = True
    inside = np.zeros(shape, bool)
    inside[tuple(slice(begin, begin + length) for begin, length in zip(offset, local, strict=True))] = True
    assert np.array_equal(found.reshape(shape), dense & inside)


@given(SHAPES, st.integers(1, 6), st.data())
def test_a_mask_cut_into_flat_shards_marks_in_each_what_the_dense_mask_does(
    shape: tuple[int, ...], world_size: int, data: st.DataObject
) -> None:
    selection, dense = data.draw(selections(shape))
    share = -(-dense.size // world_size) + data.draw(st.integers(0, 3))
    for rank in range(world_size):
        expected = np.zeros(share, bool)
        part = dense.reshape(-1)[rank * share : (rank + 1) * share]
        expected[: part.size] = part
        assert np.array_equal(marked(selection, flat_slice(shape, rank * share, share), shape, share), expected)


@given(SHAPES, st.data())
def test_a_mask_cut_into_a_rectangle_marks_what_the_dense_mask_does(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    selection, dense = data.draw(selections(shape))
    offset = [data.draw(st.integers(0, length)) for length in shape]
    local = [data.draw(st.integers(0, length - begin)) for length, begin in zip(shape, offset, strict=True)]
    cut = tuple(slice(begin, begin + length) for begin, length in zip(offset, local, strict=True))
    expected = dense[cut].reshape(-1)
    assert np.array_equal(marked(selection, rectangle(shape, local, offset), shape, expected.size), expected)


def test_the_whole_is_one_block() -> None:
    assert whole((5, 7)) == (Block(0, 5, 7, 0, 0),)
    assert whole((5,)) == (Block(0, 5, 1, 0, 0),)
    assert local_index(Selection(1, np.array([0, 3, 6])), *whole((5, 7)), (5, 7)).tolist() == [0, 3, 6]


def test_a_stack_is_one_block_a_matrix() -> None:
    assert whole((2, 5, 7)) == (Block(0, 5, 7, 0, 0, 0), Block(35, 5, 7, 0, 0, 1))


def test_a_vector_is_a_matrix_of_one_column() -> None:
    assert stack_shape((7,)) == (1, 7, 1)
    assert stack_shape((7, 3)) == (1, 7, 3)


@pytest.mark.parametrize("shape", [(), (2, 3, 4, 5)])
def test_other_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FreezeError, match=r"expected one to three dimensions"):
        stack_shape(shape)


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
