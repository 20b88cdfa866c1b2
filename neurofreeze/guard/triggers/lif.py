"""NGSD's leaky integrate-and-fire neuron (arXiv 2602.02027): it gathers how far the model is from a safety expert.

    D_t = 1/2 ||p_base,t - p_expert,t||_1,   V <- (1 - 1/tau) V + D_t,   a spike if V >= 1, and then V <- 0.6 V

with p the distributions of the next token at temperature 1. It is not a neuron of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from neurofreeze.errors import GuardError
from neurofreeze.guard.triggers.base import Step
from neurofreeze.guard.triggers.fields import is_number, require_settings


@dataclass(frozen=True)
class LifTrigger:
    """V before a spike takes effect.

    Attributes:
        tau: time constant of the leak, in tokens.
        keep: what a spike leaves of V.
    """

    tau: float = 8.0
    keep: float = 0.6
    name: ClassVar[str] = "lif"
    needs_expert: ClassVar[bool] = True
    threshold: ClassVar[float | None] = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.tau) or self.tau < 1:
            raise GuardError(f"tau is {self.tau!r}; expected a number of tokens not below 1")
        if not is_number(self.keep) or not 0 <= self.keep < 1:
            raise GuardError(f"keep is {self.keep!r}; expected a number in [0, 1)")

    @property
    def prompts(self) -> tuple[str, ...]:
        """Nothing is fitted."""
        return ()

    @contextmanager
    def watch(self, model: Any, batch: int, live: Callable[[], bool]) -> Iterator[LifWatch]:
        """Start with V = 0 in every row."""
        yield LifWatch(self, batch)

    def settings(self) -> dict[str, Any]:
        """The equations' constants."""
        return asdict(self)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Nothing is fitted."""
        return {}

    @classmethod
    def load(cls, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> LifTrigger:
        """The trigger of these settings.

        Raises:
            GuardError: if there are others, or tensors.
        """
        require_settings(cls.name, settings, "tau", "keep")
        if tensors:
            raise GuardError(f"trigger 'lif': found tensors {sorted(tensors)}; expected none")
        return cls(**settings)


class LifWatch:
    """The neurons of one batch, one a row."""

    def __init__(self, trigger: LifTrigger, batch: int) -> None:
        self.trigger = trigger
        self.potential = torch.zeros(batch, dtype=torch.float64)

    def values(self, step: Step) -> torch.Tensor:
        """V of the judged rows, after this step's leak and input."""
        base = step.logits[step.rows].softmax(-1)
        expert = step.expert(step.rows).softmax(-1)
        distance = (base - expert).abs().sum(-1).double().cpu() / 2
        self.potential[step.rows] = (1 - 1 / self.trigger.tau) * self.potential[step.rows] + distance
        return self.potential[step.rows]

    def fired(self, rows: list[int]) -> None:
        """A spike lets most of V go."""
        self.potential[rows] *= self.trigger.keep
