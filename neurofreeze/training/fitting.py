"""Fitting: what any fine-tune by one of TRL's trainers goes through, from its newest checkpoint to a saved model."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback

from neurofreeze.checkpoints import open_parameters, stamps
from neurofreeze.config.backend import BackendConfig
from neurofreeze.config.schema import TrainingConfig
from neurofreeze.console import say
from neurofreeze.distributed import first_rank, world_size
from neurofreeze.errors import ConfigError
from neurofreeze.files import sync, sync_tree
from neurofreeze.integrations.callback import FreezeCallback
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.rest import freeze_rest
from neurofreeze.training.adaptation import Adaptation
from neurofreeze.training.backends import Backend, computes_in_bf16
from neurofreeze.training.callbacks import MetricsCallback, PublishCallback, StopCallback, silence
from neurofreeze.training.checkpointing import Checkpoints, Identity
from neurofreeze.training.stopping import Stopped, StopSignals
from neurofreeze.training.throughput import ThroughputCallback

# By the names that safetensors gives them.
_STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class TrainingResult:
    """What a fine-tune left behind.

    Attributes:
        losses: (optimizer step, training loss) pairs, nats per answer token, or what else the task's loss is.
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


class Task(Protocol):
    """What a model learns, and the trainer that teaches it."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that the result depends on beside the base, the hyperparameters, the seed and what trains."""
        ...

    def prepare(self, base: Path, seed: int) -> None:
        """Get ready to begin with the checkpoint `base`, before the backend is in use. Collective."""
        ...

    def arguments(self, folder: Path, seed: int, backend: Backend) -> Any:
        """The trainer's arguments; within `backend.in_use()`. `folder` is where it saves checkpoint-N."""
        ...

    def trainer(self, **parts: Any) -> Any:
        """The trainer of these parts: backend, model, args, processing_class and callbacks."""
        ...


def fit(
    base: Path,
    output: Path,
    task: Task,
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
    """Teach the checkpoint `base` a task and save the result at `output` in the precision of `base`.

    Collective: every rank calls it, and rank 0 saves. Weights and optimizer state are float32 while training, but under
    ZeRO with bfloat16 the weights are bfloat16 and their masters float32. Rounding to the base's precision at the end
    leaves frozen elements as they are, since they never left it. A fine-tune that was interrupted goes on from its
    newest whole checkpoint, to the same result.

    Args:
        base: checkpoint folder.
        output: folder to create; it appears only when complete.
        task: what is learned.
        config: hyperparameters.
        backend: how ranks share the model; None for one process.
        seed: of the data order and dropout.
        mask: neurons to freeze, and what else; None to train everything.
        adaptation: what trains in place of the weights, None for the weights themselves.
        log: called with the trainer's logs, one dict a step.
        progress: called with (steps done, steps in all).
        checked: called with the outcome of each check of the frozen elements; see FreezeCallback.
        callbacks: more of them, such as MonitorCallback.
        signals: that may ask for a stop at the end of a step; they must be deferred.
        overwrite: begin anew where a fine-tune with other settings was interrupted.

    Raises:
        ConfigError: if the backend would round the base's weights, or saving what is frozen of them.
        FreezeError: if freezing cannot be guaranteed or failed, or another backend runs than was asked for.
        RunError: if a fine-tune with other settings was interrupted there, or on ranks that its checkpoint needs again.
        Stopped: once a step is finished and saved, if a signal asked for it.
    """
    if mask is not None:
        _require_kept(base, mask)
    workspace = output.with_name(f"{output.name}.unfinished")
    engine = Backend(backend or BackendConfig(), computes_in_bf16(config.bf16))
    checkpoints = Checkpoints(workspace, identity(base, task, config, engine.config.name, seed, mask, adaptation))
    resumed = checkpoints.newest(overwrite)
    if resumed is not None:
        say(f"going on from the checkpoint of step {resumed.step}")
    tokenizer = load_tokenizer(base)
    task.prepare(base, seed)
    metrics, stop = MetricsCallback(log, progress), StopCallback(signals or StopSignals())
    freezing = FreezeCallback(mask, config.check_every, checked) if mask is not None else None
    with engine.in_use():
        args = task.arguments(checkpoints.saving, seed, engine)
        model = engine.load(base)
        if adaptation is not None:
            model = adaptation.attach(model)
        if mask is not None:
            freeze_rest(model, mask)
        optimized = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
        trainer = task.trainer(
            backend=engine,
            model=model,
            args=args,
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
        losses = [(int(found["step"]), float(found["loss"])) for found in trainer.state.log_history if "loss" in found]
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


def identity(
    base: Path,
    task: Task,
    config: TrainingConfig,
    backend: str,
    seed: int,
    mask: NeuronMask | None,
    adaptation: Adaptation | None,
) -> Identity:
    """All that a fine-tune's result depends on; how often it is saved and checked may change between interruptions."""
    training = asdict(config)
    del training["save_steps"], training["check_every"]
    # However they are shared among ranks and micro-batches.
    training["examples_a_step"] = training.pop("batch_size") * training.pop("gradient_accumulation")
    return Identity(
        {
            # Not where it is: a run folder may be moved with the checkpoint that its arms begin with.
            "base": base.resolve().name,
            "files": stamps(base),
            **task.identity,
            "training": training,
            "seed": seed,
            "mask": None if mask is None else mask.digest,
            "adaptation": None if adaptation is None else adaptation.identity,
        },
        backend=backend,
        ranks=world_size(),
    )


def _require_kept(base: Path, mask: NeuronMask) -> None:
    """Weights are saved in the precision that the base's config says, which may not be the one they are stored in."""
    config, saved = load_config(base), _precision(base)
    with open_parameters(base, config) as weights:
        for name in mask.select(NeuronMap.of(config, mask.config.granularity)):  # type: ignore[arg-type]
            for stored in weights.dtypes(name) if name in weights else ():
                if stored not in _STORED or torch.promote_types(_STORED[stored], saved) != saved:
                    raise ConfigError(
                        f"{name} of {base} is stored as {stored}, but its config.json says {saved}, in which the "
                        'result would be saved, so that frozen weights would be rounded; correct "dtype" there'
                    )


def _rebuilt(base: Path, adaptation: Adaptation | None, gathered: dict[str, torch.Tensor]) -> Any:
    """The model as it was trained, whole and in the CPU's memory, from the weights that its ranks held."""
    model = load_model(base, torch.float32, place=False)
    if adaptation is not None:
        model = adaptation.attach(model)
    model.load_state_dict(gathered)
    return model


def _precision(base: Path) -> torch.dtype:
    dtype = load_config(base).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _save(model: Any, tokenizer: Any, base: Path, folder: Path) -> None:
    model.to(_precision(base))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
