"""TrajectoryCallback: measures a model at given shares of its training, which goes on to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neurofreeze.training.probes import undisturbed


class TrajectoryCallback(TrainerCallback):
    """Measures once each of these shares of the steps is done.

    Args:
        shares: of all optimizer steps, in (0, 1].
        measure: what to measure of the model.

    Attributes:
        points: what was measured, each with its `step`.
    """

    def __init__(self, shares: Sequence[float], measure: Callable[[Any], dict[str, Any]]) -> None:
        self.shares = shares
        self.measure = measure
        self.points: list[dict[str, Any]] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure if this is one of the steps."""
        if state.global_step in {max(1, round(share * state.max_steps)) for share in self.shares}:
            with undisturbed(kwargs["model"]):
                self.points.append({"step": state.global_step, **self.measure(kwargs["model"])})
