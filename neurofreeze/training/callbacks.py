"""Trainer callbacks: metrics out, checkpoints that count only when whole, signals that save before they stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from neurofreeze.training.checkpointing import Checkpoints
from neurofreeze.training.stopping import StopSignals


class MetricsCallback(TrainerCallback):
    """Hands on logs and the step count."""

    def __init__(
        self, log: Callable[[dict[str, Any]], None] | None, progress: Callable[[int, int], None] | None
    ) -> None:
        self.log = log
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report numbers, each with the step they belong to."""
        if self.log is not None and logs and "loss" in logs:
            self.log({"global_step": state.global_step, **logs})


class PublishCallback(TrainerCallback):
    """Makes what the trainer has saved a checkpoint to go on from.

    It belongs behind callbacks that check what was saved: if one raises, the checkpoint before stays the newest.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Publish it."""
        self.checkpoints.publish(state.global_step)


class StopCallback(TrainerCallback):
    """After each step, saves and ends training on every rank if a signal has reached any of them.

    Attributes:
        number: of the signal that the ranks stopped for, 0 while they go on.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals
        self.number = 0
        self._group: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ranks agree over gloo: they need not wait for what their GPUs are still doing."""
        if args.world_size > 1:
            self._group = dist.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop, if any rank was asked to."""
        self.number = self._agreed()
        if self.number:
            control.should_save = True
            control.should_training_stop = True

    def _agreed(self) -> int:
        if self._group is None:
            return self.signals.requested
        number = torch.tensor(self.signals.requested)
        dist.all_reduce(number, dist.ReduceOp.MAX, self._group)
        return int(number)


def silence(trainer: Any) -> None:
    """Stop a trainer from printing its logs as dicts."""
    trainer.remove_callback(PrinterCallback)
