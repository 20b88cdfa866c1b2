"""Scores gathered on several ranks, from copies and from shards of a model, against one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from neurofreeze.activations import tapped
from neurofreeze.data.batches import Batch, pad
from neurofreeze.strategies import STRATEGIES, NeuronScores
from neurofreeze.strategies.observing import forward
from neurofreeze.testing import run_distributed_test
from tests import tiny
from tests.distributed.test_fsdp2 import layerwise
from tests.strategies.scoring import batched, conversations, score

FORWARD = [name for name, strategy in STRATEGIES.items() if hasattr(strategy, "watch")]


def copies(model: Any) -> Any:
    return model


def ddp(model: Any) -> Any:
    return DistributedDataParallel(model)


def fsdp2(model: Any) -> Any:
    layerwise(model)
    return model


def zero3(model: Any) -> Any:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", dist_init_required=False)
    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3}}
    engine = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)[0]
    assert all(hasattr(p, "ds_id") for p in model.parameters())
    return engine


def sets() -> dict[str, list[Batch]]:
    # Seven conversations in batches of two: ranks run out at different times.
    return {name: batched(2, conversations(7, seed)) for seed, name in enumerate(("safety", "utility"))}


def scored(name: str, model: Any) -> NeuronScores:
    return score(STRATEGIES[name](), model, sets())


def compare(wrap: Callable[[Any], Any], dtype: torch.dtype, architecture: str = "llama") -> None:
    for name in FORWARD:
        expected = alone(name, dtype, architecture)
        found = scored(name, wrap(tiny.model(architecture, dtype=dtype)))
        for site, values in expected.values.items():
            np.testing.assert_allclose(found.values[site], values, rtol=1e-5, atol=1e-6, err_msg=f"{name} {site}")
        assert found.top(0.3) == expected.top(0.3), name


def alone(name: str, dtype: torch.dtype, architecture: str) -> NeuronScores:
    """The scores of one process, computed on every rank as if there were no others."""
    with one_process():
        return scored(name, tiny.model(architecture, dtype=dtype))


@contextmanager
def one_process() -> Iterator[None]:
    initialized, dist.is_initialized = dist.is_initialized, lambda: False
    try:
        yield
    finally:
        dist.is_initialized = initialized


def test_two_ranks_give_the_scores_of_one() -> None:
    run_distributed_test(compare, world_size=2, args=(copies, torch.float64))


def idle_experts() -> None:
    """Rank 1 has a conversation of two tokens: with two experts each, one of five at least gets none."""
    one, two = pad([([5, 9], 1)], 0, 1), pad(conversations(3), 0, 3)
    batches, model, idle = [*two, *one], tiny.model("mixtral"), []
    down = [("model.layers.0.mlp.experts.down_proj", "input")]
    with tapped(model, dict.fromkeys(down, lambda flow: idle.append(0 in flow.routing.counts))):
        forward(model, batches[dist.get_rank()])
    assert idle == [dist.get_rank() == 1]
    found = score(STRATEGIES["wifv"](), model, batches)
    with one_process():
        expected = score(STRATEGIES["wifv"](), model, batches)
    for site, values in expected.values.items():
        np.testing.assert_allclose(found.values[site], values, rtol=1e-6, err_msg=site)
    assert found.top(0.3) == expected.top(0.3)


def test_experts_that_a_rank_has_no_token_for_are_merged_too() -> None:
    run_distributed_test(idle_experts, world_size=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrap", "dtype"), [(copies, torch.float64), (ddp, torch.float64), (fsdp2, torch.float64), (zero3, torch.float32)]
)
def test_two_ranks_with_experts_give_the_scores_of_one(wrap: Callable[[Any], Any], dtype: torch.dtype) -> None:
    run_distributed_test(compare, world_size=2, args=(wrap, dtype, "mixtral"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrap", "dtype"),
    [(copies, torch.float64), (ddp, torch.float64), (fsdp2, torch.float64), (zero3, torch.float32)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_four_ranks_give_the_scores_of_one(wrap: Callable[[Any], Any], dtype: torch.dtype) -> None:
    run_distributed_test(compare, world_size=4, args=(wrap, dtype))
