"""MonitorCallback: what becomes of safety during training, not only after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neurofreeze.console import say
from neurofreeze.distributed import rank
from neurofreeze.training.updates import UpdateShares


class Measure(Protocol):
    """Something measured on a model in training: `Probes`, or `neurofreeze.guard.monitor.drift.Drift`."""

    def measure(self, model: Any) -> dict[str, Any]:
        """Numbers by name; training goes on as if nothing had happened. Collective."""
        ...


class MonitorCallback(TrainerCallback):
    """Measures the model every so many steps and after the last one, and says at the end what that cost.

    Training goes on to the same bits as without it.

    Args:
        probes: measures refusals, say.
        every: optimizer steps.
        log: takes a row on rank 0.
        updates: also measures where the weights have moved.
        drift: also measures what the safety neurons do.
    """

    def __init__(
        self,
        probes: Measure,
        every: int,
        log: Callable[[dict[str, Any]], None],
        updates: UpdateShares | None = None,
        drift: Measure | None = None,
    ) -> None:
        self.probes = probes
        self.every = every
        self.log = log
        self.updates = updates
        self.drift = drift
        self._measured = 0  # the last step that was
        self._times = 0
        self._seconds = 0.0
        self._started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure now and then."""
        if state.global_step % self.every == 0:
            self._measure(state.global_step, kwargs["model"], kwargs["optimizer"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure a last time, unless training was interrupted and has no time for it, and say what it took."""
        if self._measured < state.global_step >= state.max_steps:
            self._measure(state.global_step, kwargs["model"], kwargs["optimizer"])
        if rank() == 0 and self._times:
            share = self._seconds / (time.perf_counter() - self._started)
            say(f"monitoring: {self._times} times in {self._seconds:.1f} s, {share:.0%} of training")

    def _measure(self, step: int, model: Any, optimizer: Any) -> None:
        started = time.perf_counter()
        found = self.probes.measure(model)
        if self.updates is not None:
            found |= self.updates.measure(model, optimizer)
        if self.drift is not None:
            found |= self.drift.measure(model)
        seconds = time.perf_counter() - started
        self._measured, self._times, self._seconds = step, self._times + 1, self._seconds + seconds
        if rank() == 0:
            self.log({"global_step": step, **found, "seconds": round(seconds, 3)})
