"""How long `freeze` takes on one of eight FSDP2 ranks of a 7B model.

Real: the config, the map, the mask, FSDP2's sharded parameters with this rank's eighth of every weight in float32 and
their own storage, and every line of `freeze` on them. Simulated: the other seven ranks, whose collectives torch's fake
process group answers at once with this rank's own values; and the weights' values, which are all the same.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from neurofreeze import NeuronMap, NeuronMask, freeze
from neurofreeze.console import quiet
from neurofreeze.testing import process_context
from tests.benchmarks.models import LLAMA_2_7B

RANKS = 8
_RANK = 3
_STEPS = {
    ("neurons.py", "of"): "map of the model",
    ("mask.py", "check"): "mask fits the model",
    ("neurons.py", "select"): "selection",
    ("fsdp2.py", "shards"): "finding the shards",
    ("pieces.py", "cut"): "cutting into pieces",
    ("freezer.py", "_digest"): "digest",
}


def attach_seconds(fraction: float, layers: int) -> dict[str, Any]:
    """Seconds of `freeze` on one rank, in a new process with one thread, and how they split into its steps."""
    with ProcessPoolExecutor(1, mp_context=process_context()) as process:
        return process.submit(_simulate, fraction, layers).result()


def _simulate(fraction: float, layers: int) -> dict[str, Any]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    quiet()
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=_RANK, world_size=RANKS)
    shape = replace(LLAMA_2_7B, layers=layers)
    model = _one_rank_of(shape)
    optimizer = torch.optim.AdamW(model.parameters())
    mask = NeuronMask.random(NeuronMap.of(shape.config()), fraction, seed=1)

    start = time.perf_counter()
    freezer = freeze(model, optimizer, mask)
    total = time.perf_counter() - start
    if freezer.engine.name != "fsdp2" or not all(isinstance(p, DTensor) for p in model.parameters()):
        raise RuntimeError(f"expected fsdp2 with DTensors, found {freezer.engine.name}")
    start = time.perf_counter()
    freezer.detach()
    check = time.perf_counter() - start

    with cProfile.Profile() as profile:
        freeze(model, optimizer, mask)
    return {
        "fraction": fraction,
        "ranks": RANKS,
        **shape.summary(),
        "parameters_of_this_rank": sum(p.to_local().numel() for p in model.parameters()),
        "frozen_elements_of_this_rank": sum(piece.read(piece.of.master()).numel() for piece in freezer._weights),
        "attach_seconds": total,
        "check_seconds": check,
        "profiled": _split(pstats.Stats(profile)),
    }


def _one_rank_of(shape: Any) -> Any:
    with torch.device("meta"):
        model = shape.model()
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        # Written to, so that every page exists: reading pages that do not would be too fast.
        parameter.to_local().detach().fill_(0.02)
    return model


def _split(stats: Any) -> dict[str, float]:
    cumulative = {(Path(file).name, name): entry[3] for (file, _, name), entry in stats.stats.items()}
    found = {label: cumulative[function] for function, label in _STEPS.items()}
    return {**found, "everything else": cumulative["freezer.py", "freeze"] - sum(found.values())}
