"""Selective layers under bitsandbytes' AdamW8bit on two gloo ranks: frozen bits stay, and the freezer says so.

Masked gradients are refused under the same engines. Every step rounds moments, block by block, so the weights that
train are compared with nothing.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import neurofreeze as nf
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.distributed import test_deepspeed as zero
from tests.distributed.test_resume_deepspeed import begin
from tests.distributed.test_selective_deepspeed import IN_SHARDS, saved
from tests.selective_layers.twins import still

pytestmark = pytest.mark.slow

ENGINES = ("ddp", "zero1", "zero2", "zero3")
RANKS = 2
BATCHES = reference.batches(3, accumulation=2)


def adamw_8bit(model: Any) -> torch.optim.Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    return bitsandbytes.optim.AdamW8bit(trainable, lr=0.05, weight_decay=0.1, min_8bit_size=1)


def wrap(engine: str, model: Any) -> tuple[Any, torch.optim.Optimizer]:
    """The model under the engine, and the optimizer that steps it."""
    optimizer = adamw_8bit(model)
    if engine == "ddp":
        return DistributedDataParallel(model), optimizer
    import deepspeed

    stage = int(engine[-1])
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, **(IN_SHARDS if stage == 3 else {})},
    }
    wrapped = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    assert wrapped.zero_optimization_stage() == stage
    return wrapped, wrapped.optimizer.optimizer


def run(engine: str) -> dict[str, Any]:
    alone = tiny.model("llama", dtype=torch.float32)
    mask = reference.mask_for(alone, fraction=0.4)
    frozen, begun = still(alone, mask, "unmasked"), reference.weights(alone)
    expected = nf.freeze(alone, reference.adamw(alone), mask).fingerprint
    masked, stepped = wrap(engine, tiny.model("llama", dtype=torch.float32))
    with pytest.raises(nf.FreezeError, match="AdamW8bit is not among the optimizers"):
        nf.freeze(masked, stepped, mask)
    wrapped, optimizer = wrap(engine, nf.selective(tiny.model("llama", dtype=torch.float32), mask, train="unmasked"))
    freezer = nf.freeze(wrapped, optimizer, mask)
    if engine == "ddp":
        reference.train(wrapped, optimizer, BATCHES)
        now = wrapped.module.state_dict()
    else:
        zero.train(wrapped, BATCHES)
        now = saved(wrapped)
    moments = [state["state1"] for state in optimizer.state.values()]
    return {
        "fingerprint": freezer.check() == expected,
        "frozen": sum(int(at.sum()) for at in frozen.values()),
        "frozen changed": sum(
            int((reference.bits(now[n][at]) != reference.bits(begun[n][at])).sum()) for n, at in frozen.items()
        ),
        "trainable": sum(int((~at).sum()) for at in frozen.values()),
        "trainable changed": sum(int((now[n] != begun[n])[~at].sum()) for n, at in frozen.items()),
        "8 bits": all(moment.dtype == torch.uint8 for moment in moments),
        "moments": sum(moment.numel() for moment in moments),
    }


def what_happens_under(engine: str) -> dict[str, Any]:
    try:
        return run(engine)
    except Exception:
        return {"error": traceback.format_exc()}


def run_all(folder: str) -> None:
    begin()
    found = {engine: what_happens_under(engine) for engine in ENGINES}
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """For each rank what each engine showed."""

    folder = tmp_path_factory.mktemp("engines")
    run_distributed_test(run_all, world_size=RANKS, args=(str(folder),), timeout=600)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_bits_stay_and_only_small_parameters_have_moments(engine: str, outcomes: list[dict[str, Any]]) -> None:
    for rank in outcomes:
        found = rank[engine]
        assert "error" not in found, found["error"]
        assert found["fingerprint"]
        assert found["frozen"] > 1000
        assert found["frozen changed"] == 0
        assert found["trainable changed"] > 0.9 * found["trainable"]
        assert found["8 bits"]
        share = 1 if engine == "ddp" else RANKS
        # ZeRO pads partitions so that the ranks' are equal.
        assert found["trainable"] <= found["moments"] * share < 1.1 * found["trainable"]
