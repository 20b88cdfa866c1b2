"""Places in a parameter, against NumPy slicing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofreeze.errors import FreezeError
from neurofreeze.geometry import Block, local_index, matrix_shape, whole
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
    assert whole((5, 7)) == Block(0, 5, 7, 0, 0)
    assert whole((5,)) == Block(0, 5, 1, 0, 0)
    assert local_index(Selection(1, np.array([0, 3, 6])), whole((5, 7))).tolist() == [0, 3, 6]


def test_a_vector_is_a_matrix_of_one_column() -> None:
    assert matrix_shape((7,)) == (7, 1)
    assert matrix_shape((7, 3)) == (7, 3)


@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
def test_other_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FreezeError, match=r"expected one or two dimensions"):
        matrix_shape(shape)
