"""Update vectors under DistributedDataParallel: two ranks train as one process does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from neurofreeze.methods.nest import attach, fold
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.methods.nest.test_updates import UPDATES


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1, eps=1e-3)


def train_and_compare() -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    data = reference.batches(3, size=(ranks, 7))
    model, alone = (attach(tiny.model(), UPDATES["llama"]) for _ in range(2))
    norms = reference.train(alone, optimizer_of(alone), data)
    wrapped = DistributedDataParallel(model)
    own = [[ids[rank, None] for ids in step] for step in data]
    for found, expected in zip(reference.train(wrapped, optimizer_of(wrapped), own), norms, strict=True):
        assert abs(found - expected) <= 1e-12
    start = tiny.model()
    for p, q, before in zip(fold(wrapped).parameters(), fold(alone).parameters(), start.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-12
        assert torch.equal(p, before) == torch.equal(q, before)
    assert not torch.equal(model.model.layers[0].mlp.gate_proj.weight, start.model.layers[0].mlp.gate_proj.weight)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does() -> None:
    run_distributed_test(train_and_compare, world_size=2)
