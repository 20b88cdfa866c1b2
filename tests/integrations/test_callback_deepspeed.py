"""FreezeCallback in transformers' Trainer under real DeepSpeed engines, on gloo ranks of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from neurofreeze import FreezeCallback
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.reference import mask_for

pytestmark = pytest.mark.slow

ENGINES = {1: "DeepSpeedZeroOptimizer", 2: "DeepSpeedZeroOptimizer", 3: "DeepSpeedZeroOptimizer_Stage3"}


class Watch(TrainerCallback):  # type: ignore[misc]
    """Which engine the freezer found once training has begun."""

    def __init__(self, freezing: FreezeCallback) -> None:
        self.freezing = freezing
        self.engine = ""

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        assert self.freezing.freezer is not None
        self.engine = self.freezing.freezer.engine.name


def train(stage: int, folder: str) -> None:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", dist_init_required=False)
    model = tiny.model("llama", dtype=torch.float32)
    mask = mask_for(model)
    frozen, start = reference.dense(model, mask), reference.weights(model)
    freezing = FreezeCallback(mask, check_every=2)
    watch = Watch(freezing)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=0.05,
            weight_decay=0.1,
            max_grad_norm=0.5,
            optim="adamw_torch",
            deepspeed={
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "gradient_clipping": "auto",
            },
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in rows()]),
        callbacks=[freezing, watch],
    )
    trainer.train()
    assert watch.engine == f"deepspeed {ENGINES[stage]}"
    for name, p in model.named_parameters():
        with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
            now = p.detach()
            assert torch.equal(reference.bits(now[frozen[name]]), reference.bits(start[name][frozen[name]])), name
            assert frozen[name].all() or not torch.equal(now, start[name]), name


def rows() -> list[list[int]]:
    return torch.randint(0, 64, (32, 7), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("stage", ENGINES)
def test_trainer_under_zero_keeps_frozen_neurons(stage: int, tmp_path: Path) -> None:
    run_distributed_test(train, world_size=2, args=(stage, str(tmp_path)))
