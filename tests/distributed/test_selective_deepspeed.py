"""Selective layers under DeepSpeed ZeRO 1 to 3, on gloo ranks of this machine.

All cells of one world size run in one process group, which writes down what each one showed; the tests read that.
"""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.utils.zero_to_fp32 import load_state_dict_from_zero_checkpoint
from transformers import AutoModelForCausalLM

import neurofreeze as nf
from neurofreeze.distributed import gather
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.distributed.test_deepspeed import CLASSES, DTYPES, OFFLOAD, OPTIMIZERS, born_partitioned, train
from tests.distributed.test_resume_deepspeed import begin
from tests.selective_layers.twins import Train, adamw, still

pytestmark = pytest.mark.slow

BATCHES = reference.batches(4, accumulation=2)
# DeepSpeed keeps small parameters whole on every rank, and what is used again soon until the backward pass: here that
# would be all of them.
IN_SHARDS = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
SOME_WHOLE = {**IN_SHARDS, "stage3_param_persistence_threshold": 1000}
EVERYTHING_OFFLOADED = {**OFFLOAD, "offload_param": {"device": "cpu", "pin_memory": False}, **IN_SHARDS}


@dataclass(frozen=True)
class Cell:
    """One way to run DeepSpeed. With a fraction of 0.02 there are 3 neurons, fewer lines than ranks."""

    stage: int
    train: Train = "unmasked"
    dtype: str = "fp32"
    zero: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "AdamW"
    architecture: str = "llama"
    fraction: float = 0.4
    zero_init: bool = False
    checkpointing: bool = False


CELLS: dict[str, Cell] = {
    **{
        f"stage {stage} {train} {dtype}": Cell(stage, train, dtype, IN_SHARDS if stage == 3 else {})
        for stage in (1, 2, 3)
        for train in ("masked", "unmasked")
        for dtype in ("fp32", "bf16")
    },
    **{
        f"stage {stage}, three neurons": Cell(stage, "masked", zero=IN_SHARDS if stage == 3 else {}, fraction=0.02)
        for stage in (1, 2, 3)
    },
    **{
        f"stage 3, {architecture}": Cell(3, zero=IN_SHARDS, architecture=architecture)
        for architecture in ("phi3", "mixtral", "gpt_oss")
    },
    "stage 2, mixtral": Cell(2, architecture="mixtral"),
    "stage 2, offloaded, DeepSpeedCPUAdam": Cell(2, zero=OFFLOAD, optimizer="DeepSpeedCPUAdam"),
    "stage 3, all offloaded, DeepSpeedCPUAdam": Cell(3, zero=EVERYTHING_OFFLOADED, optimizer="DeepSpeedCPUAdam"),
    "stage 3, small parameters whole": Cell(3),
    "stage 3, some parameters whole": Cell(3, zero=SOME_WHOLE),
    "stage 3, zero.Init": Cell(3, zero=IN_SHARDS, zero_init=True),
    "stage 3, zero.Init masked bf16": Cell(3, "masked", "bf16", IN_SHARDS, zero_init=True),
    "stage 3, gradient checkpointing": Cell(3, zero=IN_SHARDS, checkpointing=True),
}
# What runs on four ranks, and in one process under DeepSpeed: the rest differs from these in other ways than by ranks.
FEW = [name for name in CELLS if name.endswith(("masked fp32", "three neurons", "mixtral", "zero.Init"))]
WORLDS = {1: FEW, 2: list(CELLS), 4: FEW}


def start(cell: Cell, decay: float = 0.1, selective: bool = True, seed: int = 0) -> Any:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": cell.stage, **cell.zero},
        **({"bf16": {"enabled": True}} if cell.dtype == "bf16" else {}),
    }
    model = tiny.model(cell.architecture, seed, dtype=DTYPES[cell.dtype])
    if cell.zero_init:
        model = born_partitioned(model, config)
    if selective:
        nf.selective(model, reference.mask_for(model, cell.fraction), train=cell.train)
    if cell.checkpointing:
        model.train().gradient_checkpointing_enable()
    optimizer = OPTIMIZERS[cell.optimizer](
        [p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=decay, eps=1e-2
    )
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def saved(engine: Any) -> dict[str, torch.Tensor]:
    """What an ordinary checkpoint of the model holds, written as accelerate does; on every rank."""
    whole = engine.zero_optimization_stage() == 3
    state = engine._zero3_consolidated_16bit_state_dict() if whole else engine.module.state_dict()
    with tempfile.TemporaryDirectory() as own:
        folder = gather(own)[0]
        if dist.get_rank() == 0:
            engine.module.save_pretrained(folder, state_dict=state)
        dist.barrier()
        loaded, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        dist.barrier()
    assert not any(found[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return {name: p.detach() for name, p in loaded.named_parameters()}


def losses_of(engine: Any) -> list[float]:
    found: list[float] = []
    engine.module.register_forward_hook(lambda _, __, output: found.append(output.loss.item()))
    return found


def run_cell(cell: Cell) -> dict[str, Any]:
    alone = tiny.model(cell.architecture, dtype=DTYPES[cell.dtype])
    mask = reference.mask_for(alone, cell.fraction)
    frozen, begun = still(alone, mask, cell.train), reference.weights(alone)
    # Without weight decay a mask on the gradients is all that freezing takes on the same engine.
    decay = 0.1 if cell.dtype == "fp32" else 0.0
    engine = start(cell, decay)
    trainable = [p for p in engine.module.parameters() if p.requires_grad]
    losses = losses_of(engine)
    norms = train(engine, BATCHES)
    now = saved(engine)
    if cell.dtype == "fp32":
        expected_losses: list[float] = []
        alone.register_forward_hook(lambda _, __, output: expected_losses.append(output.loss.item()))
        expected_norms = reference.train_frozen(alone, adamw(alone), BATCHES, frozen)
        expected = reference.weights(alone)
    else:
        naive = start(cell, decay, selective=False)
        for name, p in naive.module.named_parameters():
            p.register_hook(lambda g, keep=~frozen[name]: g * keep)
        expected_losses = losses_of(naive)
        expected_norms = train(naive, BATCHES)
        expected = saved(naive)
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return {
        "engine": type(engine.optimizer).__name__,
        "stage": engine.zero_optimization_stage(),
        "optimizer": type(base).__name__,
        "keys": list(now) == list(expected),
        "partitioned": sum(getattr(getattr(p, "ds_status", None), "name", "") == "NOT_AVAILABLE" for p in trainable),
        "losses": losses,
        "expected losses": expected_losses,
        "norms": norms,
        "expected norms": [float(norm) for norm in expected_norms],
        "difference": max(float((now[n].float() - expected[n].float()).abs().max()) for n in begun),
        "frozen": sum(int(at.sum()) for at in frozen.values()),
        "frozen changed": sum(
            int((reference.bits(now[n][at]) != reference.bits(begun[n][at])).sum()) for n, at in frozen.items()
        ),
        "trainable": sum(int((~at).sum()) for at in frozen.values()),
        "trainable changed": sum(int((now[n] != begun[n])[~at].sum()) for n, at in frozen.items()),
        "trained": sum(getattr(p, "ds_numel", p.numel()) for p in trainable),
    }


def what_happens_in(cell: Cell) -> dict[str, Any]:
    try:
        return run_cell(cell)
    except Exception:
        return {"error": traceback.format_exc()}


def run_cells(folder: str) -> None:
    begin()
    found = {name: what_happens_in(CELLS[name]) for name in WORLDS[dist.get_world_size()]}
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """World size -> for each rank what each cell showed; every world runs once."""

    @cache
    def of(ranks: int) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("cells")
        run_distributed_test(run_cells, world_size=ranks, args=(str(folder),), timeout=850)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]

    return of


@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks, names in WORLDS.items() for name in names])
def test_ranks_train_as_one_process_under_a_dense_mask_does(
    ranks: int, name: str, outcomes: Callable[[int], list[dict[str, Any]]]
) -> None:
    cell = CELLS[name]
    for rank in outcomes(ranks):
        found = rank[name]
        assert "error" not in found, found["error"]
        assert found["engine"] == CLASSES[cell.stage, cell.dtype]
        assert found["stage"] == cell.stage
        assert found["optimizer"] == cell.optimizer
        assert (found["partitioned"] > 0) == ("stage3_param_persistence_threshold" in cell.zero)
        assert found["keys"]
        assert found["frozen"] > 1000
        assert found["frozen changed"] == 0
        assert found["trainable changed"] > (0.9 if cell.dtype == "fp32" else 0.5) * found["trainable"]
        assert found["trained"] == found["trainable"]
        tolerance = 1e-5 if cell.dtype == "fp32" else 0.02
        assert found["losses"] == pytest.approx(found["expected losses"], rel=tolerance)
        assert found["norms"] == pytest.approx(found["expected norms"], rel=tolerance)
        assert found["difference"] <= tolerance


RESUMED = {
    "stage 1": Cell(1),
    "stage 2": Cell(2),
    "stage 3": Cell(3, zero=IN_SHARDS),
    "stage 3, some whole": Cell(3, zero=SOME_WHOLE),
    "stage 2 bf16": Cell(2, "masked", "bf16"),
    "stage 3 bf16": Cell(3, "masked", "bf16", IN_SHARDS),
    "stage 3, zero.Init": Cell(3, zero=IN_SHARDS, zero_init=True),
}


def resume(folder: str) -> None:
    begin()
    for name, cell in RESUMED.items():
        engine = start(cell)
        train(engine, BATCHES[:2])
        halfway = saved(engine)
        engine.save_checkpoint(folder, tag=name)
        train(engine, BATCHES[2:])
        expected = saved(engine)

        again = start(cell, seed=1)
        again.load_checkpoint(folder, tag=name)
        for parameter, tensor in saved(again).items():
            assert torch.equal(tensor, halfway[parameter]), (name, parameter)
        train(again, BATCHES[2:])
        for parameter, tensor in saved(again).items():
            assert torch.equal(tensor, expected[parameter]), (name, parameter)

        if dist.get_rank() == 0:
            # DeepSpeed writes what does not train from stage 2 on; before that it comes from the base.
            model = tiny.model(cell.architecture, seed=0 if cell.stage == 1 else 2, dtype=DTYPES[cell.dtype])
            nf.selective(model, reference.mask_for(model, cell.fraction), train=cell.train)
            exported = nf.merge(load_state_dict_from_zero_checkpoint(model, folder, tag=name))
            for parameter, tensor in exported.named_parameters():
                assert torch.equal(tensor, halfway[parameter]), (name, parameter)
        dist.barrier()


def test_a_resumed_training_is_the_uninterrupted_one_and_its_checkpoints_export(tmp_path: Path) -> None:
    run_distributed_test(resume, world_size=2, args=(str(tmp_path),))
