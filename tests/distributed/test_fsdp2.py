"""The guarantee under FSDP2, on gloo ranks of this machine, against one process in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from neurofreeze import FreezeError, freeze
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.reference import mask_for

STEPS = 4


def layerwise(model: Any, **options: Any) -> None:
    for layer in model.model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)


def shard_rows(model: Any) -> None:
    layerwise(model)


def by_columns(parameter: Any) -> Shard:
    # FSDP2 itself refuses columns that do not divide.
    divides = parameter.dim() == 2 and parameter.shape[1] % dist.get_world_size() == 0
    return Shard(1 if divides else 0)


def shard_columns(model: Any) -> None:
    layerwise(model, shard_placement_fn=by_columns)


def kept_gathered(model: Any) -> None:
    layerwise(model, reshard_after_forward=False)


def hybrid(model: Any) -> None:
    layerwise(model, mesh=init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("copy", "shard")))


def offloaded(model: Any) -> None:
    layerwise(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


def checkpointed(model: Any) -> None:
    model.train().gradient_checkpointing_enable()
    layerwise(model)


def compiled(model: Any) -> None:
    for layer in model.model.layers:
        layer.compile(backend="aot_eager")
    layerwise(model)


def tensor_parallel(model: Any) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
    plan = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer.mlp, mesh["tp"], plan)
    layerwise(model, mesh=mesh["dp"])


def adamw(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1, eps=1e-2)


def sgd(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1, momentum=0.9)


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clip(model: Any, max_norm: float) -> torch.Tensor:
    if len({p.device_mesh for p in model.parameters()}) == 1:
        return full(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    # torch cannot add up norms of parameters on two meshes, as tensor parallelism of some layers makes them.
    norm = torch.stack([full(p.grad).square().sum() for p in model.parameters()]).sum().sqrt()
    for p in model.parameters():
        p.grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0).item())
    return norm


def train_and_compare(wrap: Callable[[Any], None], optimizer_of: Callable[[Any], Any]) -> None:
    data = reference.batches(STEPS, accumulation=2)
    model, alone = tiny.model("llama"), tiny.model("llama")
    mask = mask_for(model)
    frozen, start = reference.dense(model, mask), reference.weights(model)
    norms = reference.train_frozen(alone, optimizer_of(alone), data, frozen)

    wrap(model)
    optimizer = optimizer_of(model)
    freezer = freeze(model, optimizer, mask)
    assert freezer.engine.name == "fsdp2"
    assert all(isinstance(p, DTensor) for p in model.parameters())
    for micro_batches, expected in zip(data, norms, strict=True):
        reference.backward(model, micro_batches)
        norm = clip(model, 0.5)
        assert abs(norm - expected) <= 1e-12
        optimizer.step()
        optimizer.zero_grad()

    freezer.check()
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        now = full(p.detach())
        assert torch.equal(reference.bits(now[frozen[name]]), reference.bits(start[name][frozen[name]])), name
        assert (now - q).abs().max() <= 1e-12, name
        for moment in optimizer.state[p].values():
            if isinstance(moment, DTensor) and moment.shape == p.shape:
                assert not moment.full_tensor()[frozen[name]].any(), name


# How a model is wrapped -> what the table of engines says of it.
WRAPS: dict[Callable[[Any], None], str] = {
    shard_rows: "rows sharded",
    shard_columns: "columns sharded, Shard(1)",
    kept_gathered: "reshard_after_forward off",
    hybrid: "replicated shards (HSDP)",
    offloaded: "parameters and optimizer offloaded",
    tensor_parallel: "tensor parallelism",
    checkpointed: "gradient checkpointing",
    compiled: "torch.compile",
}
OPTIMIZERS = {adamw: "AdamW", sgd: "SGD with momentum"}


@pytest.mark.parametrize("wrap", [shard_rows, shard_columns], ids=lambda f: f.__name__)
def test_two_ranks_train_as_one_process_does(wrap: Callable[[Any], None]) -> None:
    run_distributed_test(train_and_compare, world_size=2, args=(wrap, adamw))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer_of", OPTIMIZERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("wrap", WRAPS, ids=lambda f: f.__name__)
def test_four_ranks_with_empty_and_split_shards_train_as_one_process_does(
    wrap: Callable[[Any], None], optimizer_of: Callable[[Any], Any]
) -> None:
    run_distributed_test(train_and_compare, world_size=4, args=(wrap, optimizer_of))


def train_in_mixed_precision() -> None:
    model = tiny.model("llama", dtype=torch.float32)
    mask = mask_for(model)
    frozen, start = reference.dense(model, mask), reference.weights(model)
    layerwise(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask)
    reference.train(model, optimizer, reference.batches(STEPS))
    freezer.check()
    for name, p in model.named_parameters():
        now = full(p.detach())
        assert torch.equal(reference.bits(now[frozen[name]]), reference.bits(start[name][frozen[name]])), name
        assert frozen[name].all() or not torch.equal(now, start[name]), name


def test_mixed_precision_keeps_the_full_precision_shards() -> None:
    run_distributed_test(train_in_mixed_precision, world_size=2)


def skip_steps() -> None:
    model = tiny.model("llama", dtype=torch.float32)
    mask = mask_for(model)
    frozen, start = reference.dense(model, mask), reference.weights(model)
    layerwise(model)
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask)
    scaler = ShardedGradScaler(device="cpu", init_scale=1024.0)
    for step, (ids,) in enumerate(reference.batches(STEPS)):
        before = {name: full(p.detach()).clone() for name, p in model.named_parameters()}
        scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
        if step in (0, 2) and dist.get_rank() == 1:
            next(model.parameters()).grad._local_tensor[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        skipped = all(torch.equal(full(p.detach()), before[name]) for name, p in model.named_parameters())
        assert skipped == (step in (0, 2))
    freezer.check()
    for name, p in model.named_parameters():
        now = full(p.detach())
        assert torch.equal(reference.bits(now[frozen[name]]), reference.bits(start[name][frozen[name]])), name


def test_steps_that_a_gradient_scaler_skips_on_all_ranks_change_nothing() -> None:
    run_distributed_test(skip_steps, world_size=2)


def compare_fingerprints() -> None:
    whole, sharded = tiny.model("llama"), tiny.model("llama")
    mask = mask_for(whole)
    expected = freeze(whole, adamw(whole), mask).fingerprint
    layerwise(sharded)
    assert freeze(sharded, adamw(sharded), mask).fingerprint == expected


def test_the_fingerprint_does_not_depend_on_sharding() -> None:
    run_distributed_test(compare_fingerprints, world_size=2)


def write_to_one_shard() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    frozen = reference.dense(model, mask)["model.layers.0.mlp.gate_proj.weight"]
    layerwise(model)
    freezer = freeze(model, adamw(model), mask)
    if dist.get_rank() == 1:
        # gate_proj is cut by rows: rank 1 holds the second half.
        row = int(frozen[35:].any(1).nonzero()[0])
        model.model.layers[0].mlp.gate_proj.weight._local_tensor.data[row, 0] += 1
    with pytest.raises(FreezeError, match="frozen elements changed"):
        freezer.check()


def test_a_frozen_element_changed_in_one_rank_s_shard_is_noticed_on_every_rank() -> None:
    run_distributed_test(write_to_one_shard, world_size=2)
