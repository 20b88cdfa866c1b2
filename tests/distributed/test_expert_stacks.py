"""Experts kept as stacks of matrices, each with rows or columns of its own frozen: whole, and sharded under FSDP2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from neurofreeze.adapters import Adapters
from neurofreeze.engines import recognise
from neurofreeze.freezer import Freezer
from neurofreeze.neurons import NeuronMap, Selection
from neurofreeze.pieces import cut
from neurofreeze.testing import run_distributed_test
from tests import tiny
from tests.distributed.test_fsdp2 import full
from tests.reference import assert_same, bits, mask_for

EXPERTS, WIDTH, HIDDEN = 5, 7, 6
# Expert 2 is frozen whole, expert 3 not at all, and the others differ from each other.
NEURONS = {0: [0, 3], 1: [6], 2: list(range(WIDTH)), 3: [], 4: [1, 2, 5]}


class Experts(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN, generator=generator, dtype=torch.float64))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, hidden]."""
        return torch.einsum("ehw,etw->th", self.down, torch.einsum("ewh,th->etw", self.up, x).tanh())


def selections() -> dict[str, Selection]:
    index = np.array([expert * WIDTH + neuron for expert in NEURONS for neuron in NEURONS[expert]])
    return {"up": Selection(0, index), "down": Selection(1, index)}


def dense() -> dict[str, torch.Tensor]:
    up, down = torch.zeros(EXPERTS, WIDTH, HIDDEN).bool(), torch.zeros(EXPERTS, HIDDEN, WIDTH).bool()
    for expert, neurons in NEURONS.items():
        for neuron in neurons:
            up[expert, neuron, :] = True
            down[expert, :, neuron] = True
    return {"up": up, "down": down}


def frozen(model: nn.Module, optimizer: torch.optim.Optimizer) -> Freezer:
    """What `freeze` does, for a model that no config describes."""
    engine, chosen = recognise(model, optimizer), selections()
    weights, gradients = list(cut(engine.shards(chosen), chosen)), list(cut(engine.gradients(chosen), chosen))
    stand_in = tiny.model("llama")
    neuron_map, mask = NeuronMap.of(stand_in), mask_for(stand_in)
    return Freezer(model, engine, neuron_map, mask, chosen, weights, gradients, gradients, Adapters())


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def train(model: Any, optimizer: torch.optim.Optimizer, held: dict[str, torch.Tensor] | None = None) -> None:
    """Four steps; `held` elements are frozen by a dense mask."""
    start = {name: p.detach().clone() for name, p in model.named_parameters()} if held else {}
    for seed in range(4):
        x = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        model(x).square().mean().backward()
        for name, where in (held or {}).items():
            getattr(model, name).grad[where] = 0
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        with torch.no_grad():
            for name, where in (held or {}).items():
                getattr(model, name)[where] = start[name][where]
        optimizer.zero_grad()


def test_each_expert_has_neurons_of_its_own_frozen() -> None:
    model, other = Experts(), Experts()
    optimizer = adamw(model)
    freezer = frozen(model, optimizer)
    train(model, optimizer)
    train(other, adamw(other), held=dense())
    freezer.check()
    assert_same(model, other)


def shard_by_expert() -> None:
    model, other = Experts(), Experts()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    fully_shard(model)
    optimizer = adamw(model)
    freezer = frozen(model, optimizer)
    assert freezer.engine.name == "fsdp2"
    train(model, optimizer)
    train(other, adamw(other), held=dense())
    freezer.check()
    for name, where in dense().items():
        now = full(getattr(model, name).detach())
        assert torch.equal(bits(now[where]), bits(start[name][where])), name
        assert (now - getattr(other, name)).abs().max() <= 1e-12, name


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_sharded_experts_keep_their_own_neurons(ranks: int) -> None:
    run_distributed_test(shard_by_expert, world_size=ranks)
