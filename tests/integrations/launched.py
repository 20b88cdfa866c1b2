"""A training script as users write it, for `accelerate launch` to start on every rank; it also reports what ran.

To start takes much longer than to train: several trainers may train one after the other, each from the base.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import neurofreeze as nf

TOPICS = "cards loans fees rates transfers statements savings budgets cheques limits accounts branches"
ROWS = [
    {
        "prompt": f"Tell me about {topic}.",
        "chosen": f"Happy to help: here is how {topic} work, step by step.",
        "rejected": f"{topic}? No idea.",
    }
    for topic in TOPICS.split()
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("mask", type=Path)
    parser.add_argument("output", type=Path, help="in which every trainer gets a folder of its name")
    parser.add_argument("--trainer", nargs="+", choices=sorted(TRAINERS), required=True)
    parser.add_argument("--no-freeze", action="store_true")
    parser.add_argument("--resume", help="checkpoint to go on from, with the mask it carries")
    options = parser.parse_args()
    let_fsdp_run_on_cpu()
    mask = None if options.resume else nf.NeuronMask.from_pretrained(options.mask)
    for name in options.trainer:
        output = options.output / name
        callbacks = [] if options.no_freeze else [nf.FreezeCallback(mask)]
        trainer = TRAINERS[name](options.base, output, callbacks)
        trainer.train(resume_from_checkpoint=options.resume)
        trainer.save_model()
        found = report(trainer, *callbacks)
        if trainer.is_world_process_zero():
            (output / "report.json").write_text(json.dumps(found), encoding="utf-8")
    trainer.accelerator.end_training()


def let_fsdp_run_on_cpu() -> None:
    # Without an accelerator, accelerate ignores an FSDP config and runs DDP. Its one question "which accelerator is
    # there?" is answered as on a machine with GPUs; all that follows from the answer (the FSDP plugin, its mixed
    # precision, the wrapping) stays accelerate's own.
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        torch.distributed.init_process_group("gloo")
        PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


def sft(base: Path, output: Path, callbacks: list[Any], peft_config: LoraConfig | None = None) -> Trainer:
    args = SFTConfig(**settings(output))
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
    return SFTTrainer(
        model=load(base),
        args=args,
        train_dataset=Dataset.from_list(rows),
        peft_config=peft_config,
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=callbacks,
    )


def dpo(base: Path, output: Path, callbacks: list[Any]) -> Trainer:
    args = DPOConfig(**settings(output))
    return DPOTrainer(
        model=load(base),
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=callbacks,
    )


def plain(base: Path, output: Path, callbacks: list[Any]) -> Trainer:
    args = TrainingArguments(**settings(output))
    tokens = AutoTokenizer.from_pretrained(base)([row["chosen"] for row in ROWS])["input_ids"]
    return Trainer(
        model=load(base),
        args=args,
        train_dataset=Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in tokens]),
        callbacks=callbacks,
    )


def lora(base: Path, output: Path, callbacks: list[Any]) -> Trainer:
    return sft(base, output, callbacks, LoraConfig(r=4, target_modules="all-linear"))


TRAINERS = {"sft": sft, "dpo": dpo, "plain": plain, "lora": lora}


def load(base: Path) -> Any:
    # Only once the trainer's arguments exist does from_pretrained know of ZeRO-3 and shard while it loads.
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def settings(output: Path) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "max_steps": 3,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.05,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "constant",
        "save_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": True,
        "use_cpu": True,
    }


def report(trainer: Trainer, freezing: nf.FreezeCallback | None = None) -> dict[str, Any]:
    """What really ran, since accelerate may quietly choose another engine than its config names."""
    wrapped, optimizer = trainer.model_wrapped, trainer.optimizer.optimizer
    base = getattr(optimizer, "optimizer", optimizer)
    found = {
        "wrapper": type(wrapped).__name__,
        "parameters": sorted({type(p).__name__ for p in trainer.model.parameters()}),
        "dtypes": sorted({str(p.dtype) for p in trainer.model.parameters()}),
        "zero_stage": wrapped.zero_optimization_stage() if hasattr(wrapped, "zero_optimization_stage") else None,
        "offloaded": [name for name in ("offload_optimizer", "offload_param") if getattr(optimizer, name, False)],
        "optimizer": type(base).__name__,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "processes": trainer.accelerator.num_processes,
        "steps": trainer.state.global_step,
    }
    if freezing is not None:
        assert freezing.freezer is not None
        found |= {"engine": freezing.freezer.engine.name, "fingerprint": freezing.freezer.fingerprint}
    return found


if __name__ == "__main__":
    main()
