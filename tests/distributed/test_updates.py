"""Shares of the update over ranks: each element counts once, wherever its shards and copies are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from neurofreeze import freeze
from neurofreeze.engines import recognise
from neurofreeze.neurons import NeuronMap
from neurofreeze.testing import run_distributed_test
from neurofreeze.training.updates import UpdateShares
from tests import reference, tiny
from tests.distributed.test_fsdp2 import layerwise
from tests.training.test_updates import assert_shares, expected, one_site, saved

pytestmark = pytest.mark.slow


def measured(engine: str, folder: Path) -> None:
    model = tiny.model("llama", dtype=torch.float32)
    neuron_map, before = NeuronMap.of(model), reference.weights(model)
    frozen = next(iter(neuron_map.sites))
    trained = DistributedDataParallel(model) if engine == "ddp" else model
    if engine == "fsdp2":
        layerwise(model)
    optimizer = reference.adamw(trained)
    assert recognise(trained, optimizer).name == engine
    shares = UpdateShares(folder, neuron_map)
    freezer = freeze(trained, optimizer, one_site(neuron_map, frozen))
    reference.train(trained, optimizer, reference.batches(2, seed=dist.get_rank()))
    freezer.check()
    found = shares.measure(trained, optimizer)
    after = {
        name: p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for name, p in model.named_parameters()
    }
    assert_shares(found, *expected(tiny.model("llama", dtype=torch.float32), before, after))
    assert found["updates"][frozen] == 0


@pytest.mark.parametrize("engine", ["fsdp2", "ddp"])
def test_every_element_counts_once(engine: str, tmp_path: Path) -> None:
    saved("llama", tmp_path)
    run_distributed_test(measured, 2, args=(engine, tmp_path))
