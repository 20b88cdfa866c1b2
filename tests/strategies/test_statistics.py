"""RunningMoments: numpy's sample variance, whatever the chunks and however far from zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurofreeze.strategies.statistics import RunningMoments


def streamed(tokens: np.ndarray, ends: list[int]) -> np.ndarray:
    running = RunningMoments()
    for chunk in np.split(tokens, ends):
        running.add(torch.from_numpy(chunk))
    return running.variance().numpy()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 60),
    st.integers(1, 5),
    st.lists(st.integers(0, 60), max_size=6),
    st.sampled_from([0.0, 1.0, -1e4, 1e4]),
    st.integers(0, 2**32 - 1),
)
def test_equals_the_variance_of_all_tokens_at_once(
    count: int, channels: int, ends: list[int], offset: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tokens = (rng.normal(size=(count, channels)) + offset).astype(np.float32)
    expected = tokens.astype(np.float64).var(axis=0, ddof=1)
    np.testing.assert_allclose(streamed(tokens, sorted(min(e, count) for e in ends)), expected, rtol=1e-6, atol=1e-12)


def test_channels_of_very_different_scale_do_not_disturb_each_other() -> None:
    tokens = (np.random.default_rng(0).normal(size=(4096, 3)) * [1e-4, 1, 1e4] + [1, 1e4, -1e6]).astype(np.float32)
    expected = tokens.astype(np.float64).var(axis=0, ddof=1)
    np.testing.assert_allclose(streamed(tokens, list(range(64, 4096, 64))), expected, rtol=1e-5)


def test_bfloat16_tokens_are_not_summed_in_bfloat16() -> None:
    tokens = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    running = RunningMoments()
    for chunk in tokens.split(100):
        running.add(chunk)
    expected = tokens.double().numpy().var(axis=0, ddof=1)
    np.testing.assert_allclose(running.variance().numpy(), expected, rtol=1e-5)
    assert running.variance().dtype == torch.float64


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_tokens_have_no_variance(count: int) -> None:
    running = RunningMoments()
    running.add(torch.ones(count, 3))
    assert torch.count_nonzero(running.variance()) == 0


def test_memory_does_not_grow_with_the_stream() -> None:
    running = RunningMoments()
    for _ in range(50):
        running.add(torch.randn(10, 7))
    held = [value for value in vars(running).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) == 2 * 7 * 8


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_merging_is_seeing_both_streams(first: int, second: int, seed: int) -> None:
    tokens = torch.from_numpy(np.random.default_rng(seed).normal(size=(first + second, 3)) + 100)
    a, b, both = RunningMoments(), RunningMoments(), RunningMoments()
    a.add(tokens[:first])
    b.add(tokens[first:])
    both.add(tokens)
    a.merge(b)
    assert a.count == both.count == first + second
    if both.count:
        torch.testing.assert_close(a.mean, both.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(a.variance(), both.variance(), rtol=1e-9, atol=1e-12)
