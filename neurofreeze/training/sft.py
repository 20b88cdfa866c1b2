"""Supervised fine-tuning with TRL's SFTTrainer, with or without frozen neurons, interruptible and resumable."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from neurofreeze.config.backend import BackendConfig
from neurofreeze.config.schema import TrainingConfig
from neurofreeze.console import say
from neurofreeze.data.examples import Example, digest
from neurofreeze.distributed import first_rank, world_size
from neurofreeze.files import sync, sync_tree
from neurofreeze.integrations.callback import FreezeCallback
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.training.adaptation import Adaptation
from neurofreeze.training.backends import ONE_PROCESS, Backend, computes_in_bf16
from neurofreeze.training.callbacks import MetricsCallback, PublishCallback, StopCallback, silence
from neurofreeze.training.checkpointing import Checkpoints, Identity
from neurofreeze.training.order import FilledEpochs, with_filler
from neurofreeze.training.stopping import Stopped, StopSignals
from neurofreeze.training.throughput import ThroughputCallback


@dataclass(frozen=True)
class TrainingResult:
    """What a fine-tune left behind.

    Attributes:
        losses: (optimizer step, training loss) pairs, nats per answer token.
        seconds: wall-clock time of training proper.
        fingerprint: of the frozen elements, checked at the end; None if nothing was frozen.
        optimized: elements that the optimizer held, frozen ones included.
        engine: in which the freezer recognised what ran, None if nothing was frozen.
        backend: that ran, as in conf/backend.
        ranks: that it ran on.
    """

    losses: list[tuple[int, float]]
    seconds: float
    fingerprint: str | None
    optimized: int
    engine: str | None
    backend: str
    ranks: int


def fine_tune(
    base: Path,
    output: Path,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    backend: BackendConfig | None = None,
    seed: int,
    mask: NeuronMask | None = None,
    adaptation: Adaptation | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    checked: Callable[[dict[str, Any]], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    signals: StopSignals | None = None,
    overwrite: bool = False,
) -> TrainingResult:
    """Fine-tune the checkpoint `base` and save the result at `output` in the precision of `base`.

    Collective: every rank calls it, and rank 0 saves. Weights and optimizer state are float32 while training, but under
    ZeRO with bfloat16 the weights are bfloat16 and their masters float32. Rounding to the base's precision at the end
    leaves frozen elements as they are, since they never left it. A fine-tune that was interrupted goes on from its
    newest whole checkpoint, to the same result.

    Args:
        base: checkpoint folder.
        output: folder to create; it appears only when complete.
        examples: prompts with answers.
        config: hyperparameters.
        backend: how ranks share the model; None for one process.
        seed: of the data order and dropout.
        mask: neurons to freeze, None to train everything.
        adaptation: what trains in place of the weights, None for the weights themselves.
        log: called with the trainer's logs, one dict a step.
        progress: called with (steps done, steps in all).
        checked: called with the outcome of each check of the frozen elements; see FreezeCallback.
        callbacks: more of them, such as MonitorCallback.
        signals: that may ask for a stop at the end of a step; they must be deferred.
        overwrite: begin anew where a fine-tune with other settings was interrupted.

    Raises:
        ConfigError: if the backend would round the base's weights.
        FreezeError: if freezing cannot be guaranteed or failed, or another backend runs than was asked for.
        RunError: if a fine-tune with other settings was interrupted there, or on ranks that its checkpoint needs again.
        Stopped: once a step is finished and saved, if a signal asked for it.
    """
    workspace = output.with_name(f"{output.name}.unfinished")
    engine = Backend(backend or BackendConfig(), computes_in_bf16(config.bf16))
    checkpoints = Checkpoints(workspace, _identity(base, examples, config, engine.config.name, seed, mask, adaptation))
    resumed = checkpoints.newest(overwrite)
    if resumed is not None:
        say(f"going on from the checkpoint of step {resumed.step}")
    tokenizer = load_tokenizer(base)
    metrics, stop = MetricsCallback(log, progress), StopCallback(signals or StopSignals())
    freezing = FreezeCallback(mask, config.check_every, checked) if mask is not None else None
    with engine.in_use():
        args = _arguments(config, checkpoints.saving, seed, engine)
        model = engine.load(base)
        if adaptation is not None:
            model = adaptation.attach(model)
        optimized = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
        trainer = _SFTTrainer(
            backend=engine,
            model=model,
            args=args,
            train_dataset=Dataset.from_list([_row(example) for example in examples]),
            processing_class=tokenizer,
            # The clock comes first; frozen elements are checked before a checkpoint counts.
            callbacks=[
                ThroughputCallback(),
                *([] if freezing is None else [freezing]),
                PublishCallback(checkpoints),
                metrics,
                *callbacks,
                stop,
            ],
        )
        silence(trainer)
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed.folder))
        seconds = time.perf_counter() - started
        if stop.number:
            raise Stopped(stop.number, trainer.state.global_step)
        losses = [(int(row["step"]), float(row["loss"])) for row in trainer.state.log_history if "loss" in row]
        gathered = engine.gather(trainer)
        if engine.shards:
            model = None
        del trainer, args
        gc.collect()

    def save() -> None:
        whole = _rebuilt(base, adaptation, gathered) if gathered is not None else model
        _save(whole if adaptation is None else adaptation.merge(whole), tokenizer, base, workspace / "final")
        # Else, after a power cut, the stage could count as complete with weights that never reached the disk.
        sync_tree(workspace / "final")
        shutil.rmtree(output, ignore_errors=True)
        (workspace / "final").replace(output)
        sync(output.parent)
        shutil.rmtree(workspace)

    first_rank(save)
    freezer = None if freezing is None else freezing.freezer
    return TrainingResult(
        losses,
        seconds,
        fingerprint=None if freezer is None else freezer.fingerprint,
        optimized=optimized,
        engine=None if freezer is None else freezer.engine.name,
        backend=engine.config.name,
        ranks=world_size(),
    )


def _identity(
    base: Path,
    examples: Sequence[Example],
    config: TrainingConfig,
    backend: str,
    seed: int,
    mask: NeuronMask | None,
    adaptation: Adaptation | None,
) -> Identity:
    """All that a fine-tune's result depends on; how often it is saved and checked may change between interruptions."""
    files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(base.glob("*.safetensors"))]
    training = asdict(config)
    del training["save_steps"], training["check_every"]
    # However they are shared among ranks and micro-batches.
    training["examples_a_step"] = training.pop("batch_size") * training.pop("gradient_accumulation")
    return Identity(
        {
            "base": str(base.resolve()),
            "files": files,
            "examples": digest(examples),
            "training": training,
            "seed": seed,
            "mask": None if mask is None else mask.digest,
            "adaptation": None if adaptation is None else adaptation.identity,
        },
        backend=backend,
        ranks=world_size(),
    )


class _SFTTrainer(SFTTrainer):
    """SFTTrainer with the model's own loss where there is no GPU.

    TRL's chunked log-probability head saves GPU memory; its CPU fallback takes more than half of a small model's step.
    Whether the backend is the one that was asked for is looked at once the model is wrapped. The order of examples is
    that of one process, on any number of ranks.
    """

    def __init__(self, *args: Any, backend: Backend = ONE_PROCESS, **kwargs: Any) -> None:
        self.backend = backend
        self.train_dataset: Any = None
        super().__init__(*args, **kwargs)
        if world_size() > 1:
            self.train_dataset = with_filler(self.train_dataset)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if world_size() == 1:
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * world_size()
        return FilledEpochs(len(self.train_dataset) - 1, batch_size, self.args.data_seed)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._prepare_for_training(*args, **kwargs)
        self.backend.require(self)
        return found

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer looks at the step count after a step only: from the checkpoint of the last one, within an epoch, it
        # would take one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.args.device.type == "cpu":
            return Trainer.compute_loss(self, model, inputs, *args, **kwargs)
        return super().compute_loss(model, inputs, *args, **kwargs)


def _arguments(config: TrainingConfig, folder: Path, seed: int, backend: Backend = ONE_PROCESS) -> SFTConfig:
    found = SFTConfig(
        output_dir=str(folder),
        max_steps=config.steps or -1,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size // world_size(),
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        max_length=config.max_length,
        optim=config.optimizer,
        dataloader_pin_memory=torch.cuda.is_available(),
        activation_checkpointing=config.gradient_checkpointing,
        seed=seed,
        data_seed=seed,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        logging_steps=1,
        include_num_input_tokens_seen="non_padding",
        report_to="none",
        disable_tqdm=True,
        **backend.options(),
    )
    # One process on a machine with several GPUs uses the first; Trainer would put DataParallel around the model.
    found._n_gpu = min(found.n_gpu, 1)
    return found


def _row(example: Example) -> dict[str, Any]:
    return {"prompt": example.messages, "completion": [{"role": "assistant", "content": example.response}]}


def _rebuilt(base: Path, adaptation: Adaptation | None, gathered: dict[str, torch.Tensor]) -> Any:
    """The model as it was trained, whole and in the CPU's memory, from the weights that its ranks held."""
    model = load_model(base, torch.float32, place=False)
    if adaptation is not None:
        model = adaptation.attach(model)
    model.load_state_dict(gathered)
    return model


def _save(model: Any, tokenizer: Any, base: Path, folder: Path) -> None:
    dtype = load_config(base).dtype
    model.to(dtype if isinstance(dtype, torch.dtype) else torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
