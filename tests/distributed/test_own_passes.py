"""Strategies with passes of their own on several ranks, on copies and on shards of a model, against one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from neurofreeze.errors import ConfigError
from neurofreeze.strategies import NeuronScores, Strategy
from neurofreeze.strategies.change import Change
from neurofreeze.strategies.margin import Margin
from neurofreeze.strategies.snip import Snip
from neurofreeze.testing import run_distributed_test
from tests import tiny
from tests.distributed.test_fsdp2 import hybrid, kept_gathered, offloaded, shard_columns
from tests.distributed.test_select import copies, ddp, fsdp2, zero3
from tests.strategies.scoring import batched, conversations, score


def by_columns(model: Any) -> Any:
    shard_columns(model)
    return model


def replicated_shards(model: Any) -> Any:
    hybrid(model)
    return model


def never_resharded(model: Any) -> Any:
    kept_gathered(model)
    return model


def on_the_cpu(model: Any) -> Any:
    offloaded(model)
    return model


SHARDED = (fsdp2, by_columns, replicated_shards, never_resharded, on_the_cpu)


def strategies(dtype: torch.dtype) -> list[Strategy]:
    return [Snip(), Snip("batch"), Margin(), Change(tiny.model("llama", seed=1, dtype=dtype))]


def scored(strategy: Strategy, model: Any) -> NeuronScores:
    # Twelve conversations in batches of five: two ranks run out at different times, and one of four has none at all.
    return score(strategy, model, batched(5, conversations(12)))


def alone(strategy: Strategy, dtype: torch.dtype) -> NeuronScores:
    """The scores of one process, computed on every rank as if there were no others."""
    initialized, dist.is_initialized = dist.is_initialized, lambda: False
    try:
        return scored(strategy, tiny.model("llama", dtype=dtype))
    finally:
        dist.is_initialized = initialized


def compare(wrap: Callable[[Any], Any], dtype: torch.dtype) -> None:
    for strategy in strategies(dtype):
        model = wrap(tiny.model("llama", dtype=dtype))
        assert isinstance(model, DistributedDataParallel) == (wrap is ddp)
        assert all(isinstance(p, DTensor) == (wrap in SHARDED) for p in model.parameters())
        assert all(hasattr(p, "ds_id") == (wrap is zero3) for p in model.parameters())
        if wrap is zero3 and isinstance(strategy, Snip):
            with pytest.raises(ConfigError, match="DeepSpeed"):
                scored(strategy, model)
            continue
        found, expected = scored(strategy, model), alone(strategy, dtype)
        for site, values in expected.values.items():
            np.testing.assert_allclose(
                found.values[site], values, rtol=1e-5, atol=1e-7, err_msg=f"{strategy.name} {site}"
            )
        if wrap is not zero3:  # the engine of the test trains nothing
            trains(model)


def trains(model: Any) -> None:
    """A training step finds the model as it was: every gradient comes."""
    ids = torch.tensor([conversations(12)[dist.get_rank()][0]])
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_two_ranks_give_the_scores_of_one() -> None:
    run_distributed_test(compare, world_size=2, args=(copies, torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrap", "dtype"),
    [
        (copies, torch.float64),
        (ddp, torch.float64),
        *((wrap, torch.float64) for wrap in SHARDED),
        (zero3, torch.float32),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_four_ranks_give_the_scores_of_one(wrap: Callable[[Any], Any], dtype: torch.dtype) -> None:
    run_distributed_test(compare, world_size=4, args=(wrap, dtype))
