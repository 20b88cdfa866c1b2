"""The guarantee under FSDP1, on gloo ranks of this machine, against one process in float64."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffload,
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    MixedPrecision,
    ShardingStrategy,
    StateDictType,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from neurofreeze import FreezeError, freeze
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.reference import mask_for

STEPS = 4
UP = "model.layers.0.mlp.up_proj.weight"


def llama(dtype: torch.dtype = torch.float64) -> Any:
    """A tiny model with biases of an odd number of elements, after which FSDP lays padding."""
    return tiny.model("llama", dtype=dtype, intermediate_size=71)


class Cell(NamedTuple):
    """One way to run FSDP1."""

    strategy: ShardingStrategy = ShardingStrategy.FULL_SHARD
    original: bool = True  # use_orig_params
    layers: bool = True  # a flat parameter for each layer, or one for the whole model
    optimizer: str = "adamw"
    no_sync: bool = False  # accumulate before reducing, or reduce each micro-batch
    checkpointing: bool = False
    compiled: bool = False  # each layer, below its flat parameter


def named(cell: Cell) -> str:
    names = [cell.strategy.name, "original" if cell.original else "flat", "layers" if cell.layers else "root"]
    names += [cell.optimizer, *(option for option in ("no_sync", "checkpointing", "compiled") if getattr(cell, option))]
    return "-".join(names)


STRATEGIES = [ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP, ShardingStrategy.NO_SHARD]
HYBRID = [ShardingStrategy.HYBRID_SHARD, ShardingStrategy._HYBRID_SHARD_ZERO2]

TWO_RANKS = [
    Cell(original=True),
    Cell(original=False),
]
FOUR_RANKS = [
    *[Cell(strategy, original) for strategy in [*STRATEGIES, *HYBRID] for original in (True, False)],
    *[Cell(strategy, original, no_sync=True) for strategy in STRATEGIES for original in (True, False)],
    *[Cell(original=original, layers=False, optimizer="sgd") for original in (True, False)],
    *[Cell(original=original, checkpointing=True) for original in (True, False)],
    *[Cell(original=original, compiled=True) for original in (True, False)],
    Cell(ShardingStrategy.HYBRID_SHARD, layers=False, no_sync=True),
]


def wrapped(model: Any, cell: Cell, **options: Any) -> FullyShardedDataParallel:
    hybrid = cell.strategy in HYBRID
    ranks = dist.get_world_size()
    if cell.checkpointing:
        model.train().gradient_checkpointing_enable()
    if cell.compiled:
        for layer in model.model.layers:
            layer.compile(backend="aot_eager")
    return FullyShardedDataParallel(
        model,
        sharding_strategy=cell.strategy,
        use_orig_params=cell.original,
        auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}) if cell.layers else None,
        device_id=torch.device("cpu"),
        device_mesh=init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("copy", "shard")) if hybrid else None,
        **options,
    )


def optimizer_of(model: Any, kind: str = "adamw") -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1, eps=1e-2)


def backward(model: Any, micro_batches: reference.Batches, no_sync: bool) -> None:
    for number, ids in enumerate(micro_batches, 1):
        with model.no_sync() if no_sync and number < len(micro_batches) else nullcontext():
            (model(input_ids=ids, labels=ids).loss / len(micro_batches)).backward()


def clip(model: Any, cell: Cell, max_norm: float) -> torch.Tensor:
    """What `model.clip_grad_norm_` does, which refuses float64."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    squares = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    if cell.strategy != ShardingStrategy.NO_SHARD:
        dist.all_reduce(squares, group=model.process_group)
    norm = squares.sqrt()
    for gradient in gradients:
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        return {name.replace("_fsdp_wrapped_module.", ""): p.detach().clone() for name, p in model.named_parameters()}


def whole_moments(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """Parameter name -> state of its own shape, as FSDP itself gathers it."""
    everywhere = FullStateDictConfig(rank0_only=False), FullOptimStateDictConfig(rank0_only=False)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, *everywhere):
        return FullyShardedDataParallel.optim_state_dict(model, optimizer)["state"]


def train_and_compare(cell: Cell) -> None:
    data = reference.batches(STEPS, accumulation=2)
    model, alone = llama(), llama()
    mask = mask_for(model)
    frozen, start = reference.dense(model, mask), reference.weights(model)
    norms = reference.train_frozen(alone, optimizer_of(alone, cell.optimizer), data, frozen)
    whole = llama()
    fingerprint = freeze(whole, optimizer_of(whole), mask).fingerprint

    model = wrapped(model, cell)
    optimizer = optimizer_of(model, cell.optimizer)
    freezer = freeze(model, optimizer, mask)
    assert freezer.engine.name == "fsdp1"
    assert freezer.fingerprint == fingerprint
    assert {unit.sharding_strategy for unit in FullyShardedDataParallel.fsdp_modules(model)} == {cell.strategy}
    for micro_batches, expected in zip(data, norms, strict=True):
        backward(model, micro_batches, cell.no_sync)
        norm = clip(model, cell, 0.5)
        assert abs(norm - expected) <= 1e-12
        optimizer.step()
        optimizer.zero_grad()

    freezer.check()
    now, moments = whole_weights(model), whole_moments(model, optimizer)
    for name, q in alone.named_parameters():
        assert torch.equal(reference.bits(now[name][frozen[name]]), reference.bits(start[name][frozen[name]])), name
        assert (now[name] - q).abs().max() <= 1e-12, name
        held = [moment for moment in moments[name].values() if moment.shape == q.shape]
        assert held, name
        for moment in held:
            assert not moment[frozen[name]].any(), name


@pytest.mark.parametrize("cell", TWO_RANKS, ids=named)
def test_two_ranks_train_as_one_process_does(cell: Cell) -> None:
    run_distributed_test(train_and_compare, world_size=2, args=(cell,))


@pytest.mark.slow
@pytest.mark.parametrize("cell", FOUR_RANKS, ids=named)
def test_four_ranks_with_empty_and_split_shards_train_as_one_process_does(cell: Cell) -> None:
    run_distributed_test(train_and_compare, world_size=4, args=(cell,))


def train_in_float32(original: bool, mixed: bool) -> None:
    data = reference.batches(STEPS, accumulation=2)
    model, alone = llama(torch.float32), llama(torch.float32)
    mask = mask_for(model)
    frozen, start = reference.dense(model, mask), reference.weights(model)
    norms = reference.train_frozen(alone, optimizer_of(alone), data, frozen)

    # FSDP1 runs models in eval mode in full precision unless told otherwise.
    bf16 = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    model = wrapped(model.train(), Cell(original=original), mixed_precision=bf16 if mixed else None)
    optimizer = optimizer_of(model)
    freezer = freeze(model, optimizer, mask)
    for micro_batches, expected in zip(data, norms, strict=True):
        backward(model, micro_batches, no_sync=False)
        norm = model.clip_grad_norm_(0.5)
        assert norm.item() == pytest.approx(expected.item(), rel=0.1 if mixed else 1e-4)
        optimizer.step()
        optimizer.zero_grad()
    freezer.check()
    for name, now in whole_weights(model).items():
        assert torch.equal(reference.bits(now[frozen[name]]), reference.bits(start[name][frozen[name]])), name
        assert frozen[name].all() or not torch.equal(now, start[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("original", [True, False], ids=["original", "flat"])
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "mixed"])
def test_fsdp_s_own_clipping_counts_only_what_trains(original: bool, mixed: bool) -> None:
    run_distributed_test(train_in_float32, world_size=2, args=(original, mixed))


def compare_fingerprints() -> None:
    alone = llama()
    mask = mask_for(alone)
    expected = freeze(alone, optimizer_of(alone), mask).fingerprint
    for cell in [Cell(), Cell(original=False), Cell(layers=False), Cell(ShardingStrategy.NO_SHARD)]:
        model = wrapped(llama(), cell)
        assert freeze(model, optimizer_of(model), mask).fingerprint == expected, cell


def test_the_fingerprint_does_not_depend_on_sharding() -> None:
    run_distributed_test(compare_fingerprints, world_size=2)


def write_to_one_shard() -> None:
    for cell in [Cell(), Cell(original=False), Cell(ShardingStrategy.NO_SHARD)]:
        model = llama()
        mask = mask_for(model)
        frozen = reference.dense(model, mask)[UP]
        freezer = freeze(model := wrapped(model, cell), optimizer_of(model), mask)
        if dist.get_rank() == 1:
            change_one(model, frozen)
        with pytest.raises(FreezeError, match=r"frozen elements changed|differs between ranks"):
            freezer.check()


def change_one(model: Any, frozen: torch.Tensor) -> None:
    """Change one frozen element of up_proj in this rank's shard, which holds some of its elements."""
    flat_param = FullyShardedDataParallel.fsdp_modules(model)[1]._handle.flat_param  # of layer 0
    found = flat_param._shard_param_infos[flat_param._fqns.index("mlp.up_proj.weight")]
    here = frozen.flatten()[found.intra_param_start_idx : found.intra_param_end_idx + 1].nonzero()
    flat_param.data[found.offset_in_shard + int(here[0])] += 1


def test_a_frozen_element_changed_in_one_rank_s_shard_is_noticed_on_every_rank() -> None:
    run_distributed_test(write_to_one_shard, world_size=2)


def assign_gradients() -> None:
    for original in (True, False):
        model = llama()
        mask = mask_for(model)
        model = wrapped(model, Cell(original=original))
        optimizer = optimizer_of(model)
        freezer = freeze(model, optimizer, mask)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with pytest.raises(FreezeError, match="the gradient of frozen elements is not zero"):
            optimizer.step()
        freezer.mask_gradients()
        optimizer.step()
        freezer.check()


def test_gradients_assigned_past_the_hooks_stop_the_step_until_masked() -> None:
    run_distributed_test(assign_gradients, world_size=2)


def check_after_evaluation() -> None:
    for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP):
        model = llama()
        mask = mask_for(model)
        model = wrapped(model, Cell(strategy))
        # What an optimizer is given may leave out the parameters of which this rank holds nothing.
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.numel()], lr=0.05, weight_decay=0.1)
        freezer = freeze(model, optimizer, mask)
        [[ids]] = reference.batches(1)
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                model(input_ids=ids)
            freezer.check()
        reference.train(model, optimizer, reference.batches(1))
        with FullyShardedDataParallel.summon_full_params(model), pytest.raises(FreezeError, match="expected a shard"):
            freezer.check()
        freezer.detach()


def test_checks_hold_between_evaluation_and_training() -> None:
    run_distributed_test(check_after_evaluation, world_size=2)


def refuse_what_is_not_verified() -> None:
    mask = mask_for(llama())

    def refused(model: Any, optimizer: Any, reason: str) -> None:
        with pytest.raises(FreezeError, match=reason):
            freeze(model, optimizer, mask)

    model = wrapped(llama(), Cell(), cpu_offload=CPUOffload(offload_params=True))
    refused(model, optimizer_of(model), "CPUOffload")

    model = wrapped(llama(), Cell())
    model.register_comm_hook(None, lambda *_: None)
    refused(model, optimizer_of(model), "communication hook")

    model = llama()
    model.model.layers[0] = FullyShardedDataParallel(model.model.layers[0], device_id=torch.device("cpu"))
    refused(model, optimizer_of(model), "only inside LlamaForCausalLM")

    model = llama()
    before = optimizer_of(model)
    refused(wrapped(model, Cell(original=False)), before, "in no parameter group of AdamW")

    model = llama()
    up = model.model.layers[0].mlp.up_proj
    up.weight = torch.nn.Parameter(up.weight.detach().t().contiguous().t())
    refused(model := wrapped(model, Cell()), optimizer_of(model), "was not contiguous")

    model = llama()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    refused(model := wrapped(model, Cell(layers=False)), optimizer_of(model), "shared by several modules")

    model = wrapped(llama(), Cell())
    model.model.layers[0].mlp.up_proj.weight.data = model.model.layers[0].mlp.up_proj.weight.data.clone()
    refused(model, optimizer_of(model), "no longer shares the storage")

    alone = [dist.new_group([other]) for other in range(2)][dist.get_rank()]
    model = wrapped(llama(), Cell(), process_group=alone)
    refused(model, optimizer_of(model), "runs on 1 of 2 ranks")


def test_what_is_not_verified_is_refused() -> None:
    run_distributed_test(refuse_what_is_not_verified, world_size=2)
