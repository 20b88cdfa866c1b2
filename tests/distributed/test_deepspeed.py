"""The guarantee under DeepSpeed ZeRO 0 to 3, on gloo ranks of this machine.

All cells of one world size run in one process group, which writes down what each one showed; the tests read that.
"""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

from neurofreeze import FreezeError, freeze
from neurofreeze.distributed import gather
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.reference import mask_for

pytestmark = pytest.mark.slow

STEPS = 4
WORLDS = (2, 4)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "DeepSpeedCPUAdam": DeepSpeedCPUAdam,
    "FusedAdam": FusedAdam,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLASSES = {
    (0, "fp32"): "stage 0 fp32",
    (0, "bf16"): "FP16_UnfusedOptimizer",
    (1, "fp32"): "DeepSpeedZeroOptimizer",
    (1, "bf16"): "DeepSpeedZeroOptimizer",
    (2, "fp32"): "DeepSpeedZeroOptimizer",
    (2, "bf16"): "DeepSpeedZeroOptimizer",
    (3, "fp32"): "DeepSpeedZeroOptimizer_Stage3",
    (3, "bf16"): "DeepSpeedZeroOptimizer_Stage3",
}


@dataclass(frozen=True)
class Cell:
    """One way to run DeepSpeed, and the class that must be found running it."""

    stage: int
    dtype: str = "fp32"
    zero: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "AdamW"
    zero_init: bool = False
    engine: str = ""

    @property
    def expected_engine(self) -> str:
        return self.engine or CLASSES[self.stage, self.dtype]


OFFLOAD = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
HALF = {"offload_optimizer": {"device": "cpu", "pin_memory": False, "ratio": 0.5}, "sub_group_size": 3000}
CELLS: dict[str, Cell] = {
    **{f"stage {stage} {dtype}": Cell(stage, dtype) for stage, dtype in CLASSES},
    **{f"stage {stage} fp32, optimizer offloaded": Cell(stage, zero=OFFLOAD) for stage in (1, 2, 3)},
    **{f"stage {stage} fp32, overlap_comm off": Cell(stage, zero={"overlap_comm": False}) for stage in (1, 2, 3)},
    "stage 0 bf16, FusedAdam": Cell(0, "bf16", optimizer="FusedAdam", engine="FP16_Optimizer"),
    "stage 1 bf16, fp32 accumulation": Cell(
        1, "bf16", more={"data_types": {"grad_accum_dtype": "fp32"}}, engine="BF16_Optimizer"
    ),
    "stage 1 fp32, FusedAdam": Cell(1, optimizer="FusedAdam"),
    "stage 2 bf16, optimizer offloaded": Cell(2, "bf16", OFFLOAD),
    "stage 2 bf16, optimizer offloaded, DeepSpeedCPUAdam": Cell(2, "bf16", OFFLOAD, optimizer="DeepSpeedCPUAdam"),
    "stage 2 fp32, overlap_comm": Cell(2, zero={"overlap_comm": True}),
    "stage 2 fp32, round_robin_gradients": Cell(2, zero={"round_robin_gradients": True}),
    "stage 2 bf16, round_robin_gradients": Cell(2, "bf16", {"round_robin_gradients": True}),
    "stage 2 fp32, contiguous_gradients off": Cell(2, zero={"contiguous_gradients": False}),
    "stage 3 bf16, optimizer offloaded": Cell(3, "bf16", OFFLOAD),
    "stage 3 fp32, optimizer offloaded, DeepSpeedCPUAdam": Cell(3, zero=OFFLOAD, optimizer="DeepSpeedCPUAdam"),
    "stage 3 fp32, half of the optimizer offloaded": Cell(3, zero=HALF, optimizer="DeepSpeedCPUAdam"),
    "stage 3 fp32, optimizer and parameters offloaded": Cell(
        3, zero={**OFFLOAD, "offload_param": {"device": "cpu", "pin_memory": False}}
    ),
    "stage 3 fp32, odd sub_group_size": Cell(3, zero={"sub_group_size": 300}),
    "stage 3 fp32, zero.Init": Cell(3, zero_init=True),
    "stage 3 bf16, zero.Init": Cell(3, "bf16", zero_init=True),
}


def start_engine(cell: Cell, decay: float, groups: int = 1) -> Any:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": cell.stage, **cell.zero},
        **({"bf16": {"enabled": True}} if cell.dtype == "bf16" else {}),
        **cell.more,
    }
    model = tiny.model("llama", dtype=DTYPES[cell.dtype])
    if cell.zero_init:
        model = born_partitioned(model, config)
    parameters = list(model.parameters())
    cut = len(parameters) // groups
    optimizer = OPTIMIZERS[cell.optimizer](
        [{"params": parameters[i * cut : (i + 1) * cut if i + 1 < groups else None]} for i in range(groups)],
        lr=0.05,
        weight_decay=decay,
        eps=1e-2,
    )
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def born_partitioned(model: Any, config: dict[str, Any]) -> Any:
    """The same model, loaded as transformers does under ZeRO-3: with zero.Init, so that no rank ever holds it whole."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    with tempfile.TemporaryDirectory() as own:
        folder = gather(own)[0]
        if dist.get_rank() == 0:
            model.save_pretrained(folder)
        dist.barrier()
        switched_on = HfDeepSpeedConfig(config)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
        dist.barrier()
    del switched_on
    assert all(p.shape == (0,) and hasattr(p, "ds_id") for p in loaded.parameters())
    return loaded.eval()


def train(engine: Any, data: list[reference.Batches]) -> list[float]:
    """Train on the same batches on every rank; the norm before clipping at each step."""
    norms = []
    for micro_batches in data:
        for ids in micro_batches:
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
        norms.append(float(engine.get_global_grad_norm() or 0))
    return norms


def weights(engine: Any) -> dict[str, torch.Tensor]:
    import deepspeed

    found = {}
    for name, p in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
            found[name] = p.detach().clone()
    return found


def run_cell(cell: Cell) -> dict[str, Any]:
    alone = tiny.model("llama", dtype=DTYPES[cell.dtype])
    mask = mask_for(alone)
    frozen, start = reference.dense(alone, mask), reference.weights(alone)
    data = reference.batches(STEPS, accumulation=2)

    engine = start_engine(cell, decay=0.1, groups=2)
    freezer = freeze(engine, mask=mask)
    norms = train(engine, data)
    freezer.check()
    now = weights(engine)
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.05, weight_decay=0.1, eps=1e-2)
    expected_norms = reference.train_frozen(alone, optimizer, data, frozen)
    expected = reference.weights(alone)

    # Without weight decay a dense mask on the gradients is all that freezing takes: the same engine, bit for bit.
    ours, naive = start_engine(cell, decay=0.0), start_engine(cell, decay=0.0)
    freeze(ours, mask=mask)
    for name, p in naive.module.named_parameters():
        p.register_hook(lambda g, keep=~frozen[name]: g * keep)
    train(ours, data)
    train(naive, data)
    same = [torch.equal(a, b) for a, b in zip(weights(ours).values(), weights(naive).values(), strict=True)]

    return {
        "engine": freezer.engine.name,
        "optimizers": sorted(type(optimizer).__name__ for optimizer in freezer.engine.optimizers()),
        "frozen": sum(int(mask.sum()) for mask in frozen.values()),
        "frozen changed": sum(
            int((reference.bits(now[n][frozen[n]]) != reference.bits(start[n][frozen[n]])).sum()) for n in start
        ),
        "trainable changed": sum(int((now[n][~frozen[n]] != start[n][~frozen[n]]).sum()) for n in start),
        "difference": max(float((now[n].float() - expected[n].float()).abs().max()) for n in start),
        "norms": norms,
        "expected norms": [float(norm) for norm in expected_norms],
        "bitwise as naive": all(same),
    }


def what_happens_in(cell: Cell) -> dict[str, Any]:
    try:
        return run_cell(cell)
    except Exception:
        return {"error": traceback.format_exc()}


def run_cells(folder: str) -> None:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", dist_init_required=False)
    found = {name: what_happens_in(cell) for name, cell in CELLS.items()}
    if dist.get_rank() == 0:
        Path(folder, "cells.json").write_text(json.dumps(found))


@pytest.fixture(scope="module", params=WORLDS, ids=[f"{ranks} ranks" for ranks in WORLDS])
def cells(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cells")
    run_distributed_test(run_cells, world_size=request.param, args=(str(folder),), timeout=850)
    return json.loads((folder / "cells.json").read_text())


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest, cells: dict[str, Any]) -> dict[str, Any]:
    found = cells[request.param]
    assert "error" not in found, found["error"]
    cell = CELLS[request.param]
    assert found["engine"] == f"deepspeed {cell.expected_engine}"
    assert found["optimizers"] == sorted({cell.optimizer, *(["AdamW"] if cell.zero == HALF else [])})
    return {"dtype": cell.dtype, "stage": cell.stage, **found}


def test_frozen_elements_stay_bit_identical_and_the_rest_trains(cell: dict[str, Any]) -> None:
    assert cell["frozen"] > 5000
    assert cell["frozen changed"] == 0
    assert cell["trainable changed"] > 10_000


def test_the_clip_norm_counts_trainable_elements_only(cell: dict[str, Any]) -> None:
    if (cell["stage"], cell["dtype"]) == (0, "fp32"):
        assert not any(cell["norms"])  # DeepSpeed reports none here; the weights of the next test depend on it
        return
    tolerance = 1e-5 if cell["dtype"] == "fp32" else 0.05
    assert cell["norms"] == pytest.approx(cell["expected norms"], rel=tolerance)


def test_trainable_elements_go_where_one_process_takes_them(cell: dict[str, Any]) -> None:
    if cell["dtype"] == "fp32":
        assert cell["difference"] <= 1e-5


def test_trainable_elements_are_bitwise_those_of_a_dense_gradient_mask(cell: dict[str, Any]) -> None:
    assert cell["bitwise as naive"]


def skip_a_step() -> None:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", dist_init_required=False)
    alone = tiny.model("llama", dtype=torch.bfloat16)
    mask = mask_for(alone)
    frozen, start = reference.dense(alone, mask), reference.weights(alone)
    for stage in (1, 2, 3):
        engine = start_engine(Cell(stage, "bf16"), decay=0.1)
        freezer = freeze(engine, mask=mask)
        embedding = next(engine.module.parameters())
        for step, micro_batches in enumerate(reference.batches(STEPS, accumulation=2)):
            before = weights(engine)
            overflow = embedding.register_hook(lambda g: g * torch.inf) if step in (0, 2) else None
            train(engine, [micro_batches])
            skipped = all(torch.equal(now, before[name]) for name, now in weights(engine).items())
            assert skipped == (overflow is not None), (stage, step)
            if overflow is not None:
                overflow.remove()
        freezer.check()
        for name, now in weights(engine).items():
            assert torch.equal(reference.bits(now[frozen[name]]), reference.bits(start[name][frozen[name]])), name


def test_steps_that_overflow_are_skipped_and_freezing_goes_on() -> None:
    run_distributed_test(skip_a_step, world_size=2)


def refuse_and_notice() -> None:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", dist_init_required=False)
    mask = mask_for(tiny.model("llama"))
    engine = start_engine(Cell(2, "bf16"), decay=0.1)
    freezer = freeze(engine, mask=mask)
    if dist.get_rank() == 1:
        piece = freezer._weights[0]
        piece.zero(piece.of.master())
    with pytest.raises(FreezeError, match="frozen elements changed"):
        freezer.check()

    engine = start_engine(Cell(2, "bf16"), decay=0.1)
    engine.optimizer.zenflow = True
    with pytest.raises(FreezeError, match="zenflow is not verified"):
        freeze(engine, mask=mask)

    engine = start_engine(Cell(2, "bf16"), decay=0.1)
    engine.optimizer.single_partition_of_fp32_groups[0].data.add_(1)
    with pytest.raises(FreezeError, match="master does not hold the model's weights where they are expected"):
        freeze(engine, mask=mask)


def test_what_goes_wrong_on_one_rank_or_is_not_verified_is_refused_on_every_rank() -> None:
    run_distributed_test(refuse_and_notice, world_size=2)
