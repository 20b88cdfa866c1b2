"""A training script with selective layers, for `accelerate launch` to start on every rank; it reports what ran."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from launched import ROWS, let_fsdp_run_on_cpu, report, settings
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import neurofreeze as nf


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("mask", type=Path)
    parser.add_argument("output", type=Path, help="in which every way gets a folder of its name")
    parser.add_argument("--way", nargs="+", required=True, help='one after the other, such as "sft masked float32"')
    parser.add_argument("--resume", type=Path, help="an earlier output, from whose checkpoints all go on")
    options = parser.parse_args()
    let_fsdp_run_on_cpu()
    for way in options.way:
        options.trainer, options.train, options.dtype = way.split()
        output = options.output / way
        trainer = {"sft": sft, "plain": plain}[options.trainer](options, output)
        trainer.train(resume_from_checkpoint=options.resume and str(options.resume / way / "checkpoint-2"))
        trainer.save_model()
        found = report(trainer)
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        found["trainable"] = sum(getattr(p, "ds_numel", p.numel()) for p in trained)
        if trainer.is_world_process_zero():
            (output / "report.json").write_text(json.dumps(found), encoding="utf-8")
    trainer.accelerator.end_training()


def sft(options: argparse.Namespace, output: Path) -> Trainer:
    args = SFTConfig(**settings(output) | {"max_steps": 4})
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    return SFTTrainer(selective(options), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def plain(options: argparse.Namespace, output: Path) -> Trainer:
    args = TrainingArguments(**settings(output) | {"max_steps": 4})
    tokens = AutoTokenizer.from_pretrained(options.base)([row["chosen"] for row in ROWS])["input_ids"]
    rows = Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in tokens])
    return Trainer(selective(options), args, train_dataset=rows)


def selective(options: argparse.Namespace) -> Any:
    # Only once the trainer's arguments exist does from_pretrained know of ZeRO-3 and shard while it loads.
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=options.dtype)
    return nf.selective(model, nf.NeuronMask.from_pretrained(options.mask), train=options.train)


if __name__ == "__main__":
    main()
