"""ThroughputCallback: tokens a second over all ranks and memory, in every row that is logged."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ThroughputCallback(TrainerCallback):
    """Adds `tokens_per_second` and `memory_gb` to the trainer's logs; it belongs before whoever reads them.

    Tokens are those of the step, without padding, over the time from its first micro-batch to its end; what is done
    between steps (checks, checkpoints, monitoring, loading of data) does not count. Memory is this rank's: the most
    that its GPU held at once since training began, or without a GPU what the process holds now, in 10^9 bytes. The
    trainer must count tokens (`include_num_input_tokens_seen`).
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._tokens = 0
        self._rate = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what was held before."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started, self._tokens = time.perf_counter(), state.num_input_tokens_seen

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop it, once the GPU is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._rate = (state.num_input_tokens_seen - self._tokens) / (time.perf_counter() - self._started)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add to what is logged."""
        if logs is not None and "loss" in logs:
            for average in ("train_runtime", "train_tokens_per_second"):  # since the start, checks and saving included
                logs.pop(average, None)
            logs |= {"tokens_per_second": round(self._rate, 1), "memory_gb": round(_memory() / 1e9, 3)}


def _memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)
