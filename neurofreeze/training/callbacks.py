"""Trainer callbacks: metrics out, and Ctrl-C that saves before it stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback


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


class InterruptCallback(TrainerCallback):
    """Within its `with` block, the first Ctrl-C saves a checkpoint at the end of the step; the second stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> InterruptCallback:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if kind is None and self.requested:
            raise KeyboardInterrupt

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop, if asked."""
        if self.requested:
            control.should_save = True
            control.should_training_stop = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def silence(trainer: Any) -> None:
    """Stop a trainer from printing its logs as dicts."""
    trainer.remove_callback(PrinterCallback)
