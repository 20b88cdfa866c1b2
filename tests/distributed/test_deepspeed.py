"""The guarantee under DeepSpeed ZeRO 0 to 3, on gloo ranks of this machine.

All cells of one world size run in one process group, which writes down what each one showed; the tests read that.
"""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from neurofreeze import FreezeError, freeze
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.reference import mask_for

pytestmark = pytest.mark.slow

STEPS = 4
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
OFFLOAD = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
# Name -> (stage, precision, more ZeRO settings, more settings).
CELLS: dict[str, tuple[int, str, dict[str, Any], dict[str, Any]]] = {
    **{f"stage {stage} {dtype}": (stage, dtype, {}, {}) for stage, dtype in CLASSES},
    **{
        f"stage {stage} fp32, {name}": (stage, "fp32", settings, {})
        for stage in (1, 2, 3)
        for name, settings in {"offload": OFFLOAD, "no overlap": {"overlap_comm": False}}.items()
    },
    "stage 1 bf16, fp32 accumulation": (1, "bf16", {}, {"data_types": {"grad_accum_dtype": "fp32"}}),
    "stage 2 bf16, offload": (2, "bf16", OFFLOAD, {}),
    "stage 3 bf16, offload": (3, "bf16", OFFLOAD, {}),
    "stage 2 fp32, overlap": (2, "fp32", {"overlap_comm": True}, {}),
    "stage 2 fp32, round robin": (2, "fp32", {"round_robin_gradients": True}, {}),
    "stage 2 bf16, round robin": (2, "bf16", {"round_robin_gradients": True}, {}),
    "stage 2 fp32, scattered gradients": (2, "fp32", {"contiguous_gradients": False}, {}),
    "stage 3 fp32, odd sub-groups": (3, "fp32", {"sub_group_size": 300}, {}),
    "stage 3 fp32, parameters offloaded": (3, "fp32", {**OFFLOAD, "offload_param": {"device": "cpu"}}, {}),
}


def start_engine(cell: str, decay: float, groups: int = 1) -> Any:
    import deepspeed

    stage, dtype, zero, more = CELLS[cell]
    model = tiny.model("llama", dtype=DTYPES[dtype])
    parameters = list(model.parameters())
    cut = len(parameters) // groups
    optimizer = torch.optim.AdamW(
        [{"params": parameters[i * cut : (i + 1) * cut if i + 1 < groups else None]} for i in range(groups)],
        lr=0.05,
        weight_decay=decay,
        eps=1e-2,
    )
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, **zero},
        **({"bf16": {"enabled": True}} if dtype == "bf16" else {}),
        **more,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


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


def run_cell(cell: str) -> dict[str, Any]:
    _, dtype, *_ = CELLS[cell]
    alone = tiny.model("llama", dtype=DTYPES[dtype])
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


def what_happens_in(cell: str) -> dict[str, Any]:
    try:
        return run_cell(cell)
    except Exception:
        return {"error": traceback.format_exc()}


def run_cells(folder: str) -> None:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", dist_init_required=False)
    found = {}
    for cell in CELLS:
        found[cell] = what_happens_in(cell)
    if dist.get_rank() == 0:
        Path(folder, "cells.json").write_text(json.dumps(found))


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def cells(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cells")
    run_distributed_test(run_cells, world_size=request.param, args=(str(folder),))
    return json.loads((folder / "cells.json").read_text())


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest, cells: dict[str, Any]) -> dict[str, Any]:
    found = cells[request.param]
    assert "error" not in found, found["error"]
    stage, dtype, _, more = CELLS[request.param]
    expected = "BF16_Optimizer" if "data_types" in more else CLASSES[stage, dtype]
    assert found["engine"] == f"deepspeed {expected}"
    return {"dtype": dtype, "stage": stage, **found}


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


def refuse_and_notice() -> None:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", dist_init_required=False)
    mask = mask_for(tiny.model("llama"))
    engine = start_engine("stage 2 bf16", decay=0.1)
    freezer = freeze(engine, mask=mask)
    if dist.get_rank() == 1:
        piece = freezer._weights[0]
        piece.zero(piece.of.master())
    with pytest.raises(FreezeError, match="frozen elements changed"):
        freezer.check()

    engine = start_engine("stage 2 bf16", decay=0.1)
    engine.optimizer.zenflow = True
    with pytest.raises(FreezeError, match="zenflow is not verified"):
        freeze(engine, mask=mask)

    engine = start_engine("stage 2 bf16", decay=0.1)
    engine.optimizer.single_partition_of_fp32_groups[0].data.add_(1)
    with pytest.raises(FreezeError, match="master does not hold the model's weights where they are expected"):
        freeze(engine, mask=mask)


def test_what_goes_wrong_on_one_rank_or_is_not_verified_is_refused_on_every_rank() -> None:
    run_distributed_test(refuse_and_notice, world_size=2)
