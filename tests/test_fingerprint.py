"""The digest against its definition, written out with Python's own integers."""

from __future__ import annotations

import hashlib
import itertools
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurofreeze import fingerprint
from neurofreeze.geometry import Block, local_index, whole
from neurofreeze.neurons import Selection

NAME = "model.layers.0.mlp.up_proj.weight"
ALL_64_BITS = 2**64 - 1


def mix(x: int) -> int:
    """The finaliser of SplitMix64."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ALL_64_BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ALL_64_BITS
    return x ^ (x >> 31)


def reference(name: str, values: torch.Tensor, axis: int, index: list[int]) -> int:
    """Sum over the chosen elements of mix(bits ^ mix(position + salt)); bits are float32's, sign-extended."""
    salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    matrix = values.reshape(len(values), -1)
    total = 0
    for row in range(matrix.shape[0]):
        for col in range(matrix.shape[1]):
            if (row, col)[axis] in index:
                value = matrix[row, col].item()
                if values.dtype == torch.float64:
                    bits = struct.unpack("<q", struct.pack("<d", value))[0]
                else:
                    bits = struct.unpack("<i", struct.pack("<f", value))[0]
                position = row * matrix.shape[1] + col
                total += mix((bits & ALL_64_BITS) ^ mix((position + salt) & ALL_64_BITS))
    return total & ALL_64_BITS


def digest(values: torch.Tensor, axis: int, index: Any, name: str = NAME) -> int:
    shape = tuple(values.shape)
    return fingerprint.digest(name, shape, *whole(shape), axis, torch.tensor(index), values.reshape(-1))


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_mix_is_that_of_splitmix64() -> None:
    # First outputs of SplitMix64 seeded with 0 and with 1234567, as published with the Java and C references.
    gamma = 0x9E3779B97F4A7C15
    assert [mix(gamma), mix(2 * gamma & ALL_64_BITS)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert mix(1234567 + gamma) == 6457827717110365317


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "axis"), [((7, 5), 0), ((7, 5), 1), ((11,), 0), ((1, 9), 1), ((9, 1), 0)])
def test_the_digest_is_what_its_definition_says(shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> None:
    values = random(*shape, dtype=dtype)
    index = list(range(0, shape[axis], 2))
    assert digest(values, axis, index) == reference(NAME, values, axis, index)


def test_the_digest_of_extreme_values() -> None:
    values = torch.tensor([[0.0, -0.0, torch.inf, -torch.inf], [1e-45, -1e-45, 3.4e38, -3.4e38]])
    assert digest(values, 0, [0, 1]) == reference(NAME, values, 0, [0, 1])


def test_a_digest_written_down_stays_valid() -> None:
    # Masks store digests: a new definition would make every stored one wrong.
    values = torch.arange(12, dtype=torch.float32).view(3, 4) - 5
    assert fingerprint.text(digest(values, 1, [0, 3])) == "a97f6b16c0a0823b"  # by the reference above


@given(st.data())
def test_blocks_cut_anywhere_add_up_to_the_whole(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    axis = data.draw(st.integers(0, 1))
    index = sorted(data.draw(st.sets(st.integers(0, (rows, cols)[axis] - 1), min_size=1)))
    row_cuts = [0, *sorted(data.draw(st.lists(st.integers(0, rows), max_size=3))), rows]
    col_cuts = [0, *sorted(data.draw(st.lists(st.integers(0, cols), max_size=3))), cols]
    values = random(rows, cols)
    total = 0
    for top, bottom in itertools.pairwise(row_cuts):
        for left, right in itertools.pairwise(col_cuts):
            padding = torch.full((3,), 7.0)
            flat = torch.cat([padding, values[top:bottom, left:right].reshape(-1), padding])
            block = Block(3, bottom - top, right - left, top, left)
            if block.rows and block.cols:
                local = torch.from_numpy(local_index(Selection(axis, np.array(index)), block, (rows, cols)))
                total += fingerprint.digest(NAME, (rows, cols), block, axis, local, flat)
    assert total % fingerprint.MODULUS == digest(values, axis, index)


def test_rows_digested_one_by_one_add_up() -> None:
    values = random(6, 5)
    assert sum(digest(values, 0, [row]) for row in range(6)) % 2**64 == digest(values, 0, range(6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_digest_of_its_widening(dtype: torch.dtype) -> None:
    values = random(7, 5, dtype=dtype)
    assert digest(values, 0, [1, 4]) == digest(values.float(), 0, [1, 4])


def test_minus_zero_is_not_zero() -> None:
    assert digest(torch.tensor([[0.0, 1.0]]), 0, [0]) != digest(torch.tensor([[-0.0, 1.0]]), 0, [0])


@given(st.integers(0, 34), st.integers(0, 31), st.integers(0, 1))
def test_one_flipped_bit_changes_the_digest(element: int, bit: int, axis: int) -> None:
    values = random(7, 5)
    before = digest(values, axis, range((7, 5)[axis]))
    bits = values.view(torch.int32).view(-1)
    bits[element] ^= -(2**31) if bit == 31 else 1 << bit
    assert digest(values, axis, range((7, 5)[axis])) != before


@given(st.sampled_from(range(7)), st.sampled_from(range(5)), st.integers(0, 1))
def test_a_change_outside_the_selection_leaves_the_digest(row: int, col: int, axis: int) -> None:
    values = random(7, 5)
    index = [i for i in range((7, 5)[axis]) if i != (row, col)[axis]]
    before = digest(values, axis, index)
    values[row, col] += 1
    assert digest(values, axis, index) == before


def test_two_elements_swapped_change_the_digest() -> None:
    values = random(4, 3)
    before = digest(values, 0, range(4))
    swapped = values.clone()
    swapped[0, 1], swapped[2, 2] = values[2, 2], values[0, 1]
    assert digest(swapped, 0, range(4)) != before


def test_the_same_values_under_another_name_or_shape_have_another_digest() -> None:
    values = random(4, 6)
    before = digest(values, 0, range(4))
    assert digest(values, 0, range(4), name="other") != before
    assert digest(values.t().contiguous(), 0, range(6)) != before


@pytest.mark.parametrize("chunk", [1, 4, 5, 6, 17, 1 << 20])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_digest_does_not_depend_on_how_it_is_chunked(
    axis: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = random(7, 5)
    index = [0, 1, 3, 4]
    expected = reference(NAME, values, axis, index)
    monkeypatch.setattr(fingerprint, "_chunk", lambda _: chunk)
    assert digest(values, axis, index) == expected


def test_nothing_chosen_digests_to_zero() -> None:
    index = torch.tensor([], dtype=torch.int64)
    assert fingerprint.digest(NAME, (3, 2), *whole((3, 2)), 0, index, random(6)) == 0


def test_text_is_sixteen_digits() -> None:
    assert fingerprint.text(0) == "0" * 16
    assert fingerprint.text(2**64 + 255) == "00000000000000ff"
    assert fingerprint.text(ALL_64_BITS) == "f" * 16
