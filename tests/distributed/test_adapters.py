"""Freezing under LoRA on gloo ranks of this machine, against one process and a dense mask of its adapters."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from neurofreeze import FreezeError, freeze
from neurofreeze.testing import run_distributed_test
from tests import lora, reference, tiny
from tests.distributed.test_deepspeed import CLASSES, DTYPES, train, weights
from tests.reference import mask_for

STEPS = 4
RANKS = 2
OPTIONS = {"lora_bias": True, "bias": "lora_only"}


def alone_and_frozen(dtype: torch.dtype, data: list[Any]) -> tuple[Any, Any, Any, list[torch.Tensor]]:
    """The base, the mask, and a PEFT model trained in one process by hand, with its norms."""
    base = tiny.model("llama", dtype=dtype)
    mask = mask_for(base)
    model = lora.adapted(base, **OPTIONS)
    frozen = lora.dense(model, reference.dense(base, mask))
    lora.zero(model, frozen)
    return base, mask, model, reference.train_frozen(model, lora.adamw(model), data, frozen)


def assert_frozen(whole: dict[str, torch.Tensor], base: Any, mask: Any) -> None:
    """The adapters that ranks trained, merged in one process, leave frozen neurons as they were."""
    model = lora.adapted(base, **OPTIONS)
    model.load_state_dict(whole, strict=False)
    start, frozen = reference.weights(base), reference.dense(base, mask)
    now = lora.merged(model)
    assert lora.changed(now, start, frozen) == 0
    # Few of the small changes survive rounding to bfloat16.
    assert lora.trained(now, start, frozen) > 1_000


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def ddp(model: Any) -> Any:
    return DistributedDataParallel(model)


def fsdp2(model: Any) -> Any:
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def train_and_compare(wrap: Any) -> None:
    rank = dist.get_rank()
    data = reference.batches(STEPS, accumulation=1, size=(RANKS, 7))
    base, mask, alone, norms = alone_and_frozen(torch.float64, data)
    model = lora.adapted(base, **OPTIONS)
    wrapped = wrap(model)
    optimizer = lora.adamw(wrapped)
    freezer = freeze(wrapped, optimizer, mask)
    assert freezer.engine.name == wrap.__name__
    assert isinstance(next(model.parameters()), DTensor) == (wrap is fsdp2)
    assert freezer.fingerprint == freeze(base, reference.adamw(base), mask).fingerprint
    for (ids,), expected in zip(data, norms, strict=True):
        wrapped(input_ids=ids[rank, None], labels=ids[rank, None]).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 0.5)
        assert abs(full(norm) - expected) <= 1e-12
        optimizer.step()
        optimizer.zero_grad()
    freezer.check()
    whole = {name: full(p.detach()) for name, p in model.named_parameters()}
    for name, expected in alone.named_parameters():
        assert (whole[name] - expected).abs().max() <= 1e-12, name
    frozen = lora.dense(alone, reference.dense(base, mask))
    for name, p in model.named_parameters():
        for moment in optimizer.state.get(p, {}).values():
            if moment.shape == p.shape:
                assert not full(moment)[frozen[name]].any(), name
    assert_frozen(whole, base, mask)


@pytest.mark.parametrize("wrap", [ddp, fsdp2], ids=lambda f: f.__name__)
def test_ranks_train_as_one_process_does(wrap: Any) -> None:
    run_distributed_test(train_and_compare, world_size=RANKS, args=(wrap,))


def refuse_and_notice() -> None:
    base = tiny.model("llama")
    mask = mask_for(base)
    model = lora.adapted(base)
    sharded = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    with pytest.raises(
        FreezeError, match="freezing adapters, or parameters without gradients, under FSDP1 is not verified"
    ):
        freeze(sharded, lora.adamw(sharded), mask)

    # Rows of lora_B are cut between the ranks: only one of them sees this.
    model = lora.adapted(base)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    row = int(reference.dense(base, mask)["model.layers.0.mlp.up_proj.weight"].any(1).nonzero()[-1])
    assert row >= 35
    with torch.no_grad():
        layer.lora_B["default"].weight[row] = 1
    fsdp2(model)
    with pytest.raises(FreezeError, match=r"the adapter changes frozen neurons already: .*up_proj\.lora_B"):
        freeze(model, lora.adamw(model), mask)


def test_what_one_rank_sees_is_refused_on_every_rank() -> None:
    run_distributed_test(refuse_and_notice, world_size=RANKS)


def start_engine(stage: int, dtype: str, **zero: Any) -> Any:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, **zero},
        **({"bf16": {"enabled": True}} if dtype == "bf16" else {}),
    }
    model = lora.adapted(tiny.model("llama", dtype=DTYPES[dtype]), autocast_adapter_dtype=False, **OPTIONS)
    return deepspeed.initialize(model=model, optimizer=lora.adamw(model), config=config)[0]


# Stage 3 keeps small parameters gathered, unless it is told not to.
CELLS: dict[str, tuple[int, str, dict[str, Any]]] = {
    **{f"stage {stage} {dtype}": (stage, dtype, {}) for stage, dtype in CLASSES},
    "stage 3 fp32, none kept": (3, "fp32", {"stage3_param_persistence_threshold": 0}),
}


def run_cells(folder: str) -> None:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", dist_init_required=False)
    data = reference.batches(STEPS, accumulation=2)
    found = {}
    for name, (stage, dtype, zero) in CELLS.items():
        base, mask, alone, norms = alone_and_frozen(DTYPES[dtype], data)
        engine = start_engine(stage, dtype, **zero)
        freezer = freeze(engine, mask=mask)
        # Ranks hold slices of what is stepped, but below stage 3 compute with whole parameters, in the first step too.
        frozen = lora.dense(alone, reference.dense(base, mask))
        wholes = {n: p for n, p in engine.module.named_parameters() if ".lora_" in n and p.shape == frozen[n].shape}
        assert bool(wholes) == (stage < 3), name
        assert not any(p[frozen[n]].any() for n, p in wholes.items()), name
        moved = train(engine, data)
        freezer.check()
        now = weights(engine)
        assert_frozen(now, base, mask)
        found[name] = {
            "engine": freezer.engine.name,
            "difference": max(float((now[n].float() - p.float()).abs().max()) for n, p in alone.named_parameters()),
            "norms": moved,
            "expected norms": [float(norm) for norm in norms],
        }
    if dist.get_rank() == 0:
        Path(folder, "cells.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_zero_trains_as_one_process_does(tmp_path: Path) -> None:
    run_distributed_test(run_cells, world_size=RANKS, args=(str(tmp_path),))
    found = json.loads((tmp_path / "cells.json").read_text())
    for name, (stage, dtype, _) in CELLS.items():
        assert found[name]["engine"] == f"deepspeed {CLASSES[stage, dtype]}"
        if dtype == "fp32":
            assert found[name]["difference"] <= 1e-5, name
            if stage:
                assert found[name]["norms"] == pytest.approx(found[name]["expected norms"], rel=1e-5), name
