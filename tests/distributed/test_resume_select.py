"""Selections that were interrupted on several ranks, each at a batch of its own, go on to the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from neurofreeze.data import read
from neurofreeze.errors import NeuroFreezeWarning
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.strategies import NeuronScores, make, resuming, select_all
from neurofreeze.testing import run_distributed_test
from tests.distributed.test_select import copies, fsdp2

NAMES = ("wifv", "contrast", "snip", "margin")


def run(wrap: Callable[[Any], Any], checkpoint: Path, **options: Any) -> list[NeuronScores]:
    sets = {
        "safety": read("bundled:harmful/calibration", limit=7),
        "utility": read("bundled:instructions/calibration")[:7],
    }
    model, tokenizer = wrap(load_model(checkpoint, torch.float32)), load_tokenizer(checkpoint)
    strategies = [make(name, {}) for name in NAMES]
    return select_all(model, tokenizer, sets, strategies, batch_size=1, max_length=128, **options)


def go_on(wrap: Callable[[Any], Any], checkpoint: Path, folder: Path, at: tuple[int, int]) -> None:
    """What each rank kept after a batch of its own stands for an interruption there."""
    resuming._EVERY, resuming._SHARE = 0.0, 1e9
    file, told = f"rank-{dist.get_rank()}.safetensors", []

    def progress() -> None:
        told.append(1)
        if len(told) == at[dist.get_rank()]:
            (folder / "then").mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "now" / file, folder / "then" / file)

    expected = run(wrap, checkpoint, resume=folder / "now", progress=progress)
    assert len(told) > max(at)
    for scores in (run(wrap, checkpoint, resume=folder / "then"), run(wrap, checkpoint)):
        for one, other in zip(scores, expected, strict=True):
            for name, values in other.values.items():
                np.testing.assert_array_equal(one.values[name], values, err_msg=f"{one.strategy['name']} {name}")
    assert not (folder / "then").exists()


# Four turns of each rank in both passes, then those of snip (seven where shards need all ranks) and of margin.
@pytest.mark.parametrize(
    "at", [(3, 2), *(pytest.param(at, marks=pytest.mark.slow) for at in ((6, 7), (10, 9), (16, 19)))]
)
def test_ranks_that_stopped_at_different_batches(at: tuple[int, int], tiny_checkpoint: Path, tmp_path: Path) -> None:
    run_distributed_test(go_on, 2, args=(copies, tiny_checkpoint, tmp_path, at))


@pytest.mark.slow
@pytest.mark.parametrize("at", [(3, 2), (10, 12), (20, 18)])
def test_shards_that_stopped_at_different_batches(at: tuple[int, int], tiny_checkpoint: Path, tmp_path: Path) -> None:
    run_distributed_test(go_on, 2, args=(fsdp2, tiny_checkpoint, tmp_path, at))


def start_again(checkpoint: Path, folder: Path) -> None:
    expected = run(copies, checkpoint, resume=folder, keep=True)
    dist.barrier()
    alone, dist.is_initialized = dist.is_initialized, lambda: False
    try:
        if dist.get_rank() == 0:
            with pytest.warns(NeuroFreezeWarning, match="ranks was 2, is 1"):
                found = run(copies, checkpoint, resume=folder)
            for one, other in zip(found, expected, strict=True):
                for name, values in other.values.items():
                    np.testing.assert_allclose(one.values[name], values, rtol=1e-4, atol=1e-5)
    finally:
        dist.is_initialized = alone
    dist.barrier()


@pytest.mark.slow
def test_another_number_of_ranks_starts_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run_distributed_test(start_again, 2, args=(tiny_checkpoint, tmp_path))
