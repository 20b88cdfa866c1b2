"""Supervised fine-tuning with TRL's SFTTrainer, with or without frozen neurons, interruptible and resumable."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from neurofreeze.config.schema import TrainingConfig
from neurofreeze.data.examples import Example, digest
from neurofreeze.files import write_atomically
from neurofreeze.integrations.callback import FreezeCallback
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.training.adaptation import Adaptation
from neurofreeze.training.callbacks import InterruptCallback, MetricsCallback, silence


@dataclass(frozen=True)
class TrainingResult:
    """What a fine-tune left behind.

    Attributes:
        losses: (optimizer step, training loss) pairs, nats per answer token.
        seconds: wall-clock time of training proper.
        fingerprint: of the frozen elements, checked at the end; None if nothing was frozen.
        optimized: elements that the optimizer held, frozen ones included.
    """

    losses: list[tuple[int, float]]
    seconds: float
    fingerprint: str | None
    optimized: int


def fine_tune(
    base: Path,
    output: Path,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    seed: int,
    mask: NeuronMask | None = None,
    adaptation: Adaptation | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingResult:
    """Fine-tune the checkpoint `base` and save the result at `output` in the precision of `base`.

    Weights and optimizer state are float32 while training. Rounding to the base's precision at the end leaves frozen
    elements as they are, since they never left it. A fine-tune that was interrupted goes on from its checkpoint, if all
    that it depends on is still the same.

    Args:
        base: checkpoint folder.
        output: folder to create; it appears only when complete.
        examples: prompts with answers.
        config: hyperparameters.
        seed: of the data order and dropout.
        mask: neurons to freeze, None to train everything.
        adaptation: what trains in place of the weights, None for the weights themselves.
        log: called with the trainer's logs, one dict a step.
        progress: called with (steps done, steps in all).

    Raises:
        FreezeError: if freezing cannot be guaranteed or failed.
        KeyboardInterrupt: after Ctrl-C, once the current step is finished and saved.
    """
    workspace = output.with_name(f"{output.name}.unfinished")
    _prepare(workspace, _identity(base, examples, config, seed, mask, adaptation))
    tokenizer = load_tokenizer(base)
    model = load_model(base, torch.float32)
    if adaptation is not None:
        model = adaptation.attach(model)
    optimized = sum(p.numel() for p in model.parameters() if p.requires_grad)
    metrics, interrupt = MetricsCallback(log, progress), InterruptCallback()
    freezing = FreezeCallback(mask, config.check_every) if mask is not None else None
    trainer = _SFTTrainer(
        model=model,
        args=_arguments(config, workspace, seed),
        train_dataset=Dataset.from_list([_row(example) for example in examples]),
        processing_class=tokenizer,
        callbacks=[callback for callback in (freezing, metrics, interrupt) if callback is not None],
    )
    silence(trainer)
    started = time.perf_counter()
    with interrupt:
        trainer.train(resume_from_checkpoint=get_last_checkpoint(workspace))
    seconds = time.perf_counter() - started

    losses = [(int(row["step"]), float(row["loss"])) for row in trainer.state.log_history if "loss" in row]
    if adaptation is not None:
        model = adaptation.merge(model)
    _save(model, tokenizer, base, workspace / "final")
    del trainer, model
    gc.collect()
    shutil.rmtree(output, ignore_errors=True)
    (workspace / "final").replace(output)
    shutil.rmtree(workspace)
    fingerprint = freezing.freezer.fingerprint if freezing is not None and freezing.freezer is not None else None
    return TrainingResult(losses, seconds, fingerprint, optimized)


def _identity(
    base: Path,
    examples: Sequence[Example],
    config: TrainingConfig,
    seed: int,
    mask: NeuronMask | None,
    adaptation: Adaptation | None,
) -> str:
    """All that a fine-tune's result depends on, as text."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(base.glob("*.safetensors"))]
    settings = {
        "base": str(base.resolve()),
        "files": files,
        "examples": digest(examples),
        "config": asdict(config),
        "seed": seed,
        "mask": None if mask is None else mask.digest,
        "adaptation": None if adaptation is None else adaptation.identity,
    }
    return json.dumps(settings, indent=1)


def _prepare(workspace: Path, identity: str) -> None:
    """Remove what another fine-tune left in `workspace`: to go on from its checkpoint would mix the two."""
    stamp = workspace / "identity.json"
    if workspace.is_dir() and not (stamp.is_file() and stamp.read_text(encoding="utf-8") == identity):
        shutil.rmtree(workspace)
    write_atomically(stamp, identity.encode())


class _SFTTrainer(SFTTrainer):
    """SFTTrainer with the model's own loss where there is no GPU.

    TRL's chunked log-probability head saves GPU memory; its CPU fallback takes more than half of a small model's step.
    """

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.args.device.type == "cpu":
            return Trainer.compute_loss(self, model, inputs, *args, **kwargs)
        return super().compute_loss(model, inputs, *args, **kwargs)


def _arguments(config: TrainingConfig, folder: Path, seed: int) -> SFTConfig:
    gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(folder),
        max_steps=config.steps or -1,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        max_length=config.max_length,
        optim=config.optimizer,
        bf16=_bf16(config.bf16),
        fp16=False,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        activation_checkpointing=config.gradient_checkpointing,
        seed=seed,
        data_seed=seed,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )


def _bf16(wanted: str) -> bool:
    if wanted != "auto":
        return wanted == "true"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    # Without the instructions bfloat16 is emulated and slower than float32.
    return bool(torch.cpu._is_avx512_bf16_supported())


def _row(example: Example) -> dict[str, Any]:
    return {"prompt": example.messages, "completion": [{"role": "assistant", "content": example.response}]}


def _save(model: Any, tokenizer: Any, base: Path, folder: Path) -> None:
    dtype = load_config(base).dtype
    model.to(dtype if isinstance(dtype, torch.dtype) else torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
