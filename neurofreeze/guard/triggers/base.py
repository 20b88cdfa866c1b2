"""What every trigger does: a number for each row and step, the larger the more suspect."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple, Protocol

import torch


class Step(NamedTuple):
    """A moment before a token is chosen.

    Attributes:
        number: how many tokens of the answer there are.
        ids: int64 [batch, length], prompts padded on the left, and answers so far.
        logits: float32 [batch, vocabulary], as the model gave them; [batch, 0] where no gate needs an expert.
        rows: which rows are judged; the others are finished or settled.
        expert: float32 [rows, vocabulary], the expert's logits for those rows; runs it if it has not run yet.
    """

    number: int
    ids: torch.Tensor
    logits: torch.Tensor
    rows: list[int]
    expert: Callable[[list[int]], torch.Tensor]


class Watch(Protocol):
    """A trigger's state in one call of generate."""

    def values(self, step: Step) -> torch.Tensor:
        """Float [len(step.rows)]: how suspect each judged row is at this step."""
        ...

    def fired(self, rows: list[int]) -> None:
        """These rows have just reached the threshold."""
        ...


class Trigger(Protocol):
    """Measures; whether a measurement is past a threshold is the gate's to say.

    Attributes:
        name: in files and events.
        needs_expert: whether it compares the model with an expert.
        threshold: what the gate compares with until it is calibrated; None if only calibration can tell.
    """

    name: ClassVar[str]
    needs_expert: ClassVar[bool]
    threshold: ClassVar[float | None]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Keys (`Example.key`) of the prompts that it was fitted on."""
        ...

    def watch(self, model: Any, batch: int, live: Callable[[], bool]) -> AbstractContextManager[Watch]:
        """Watch a model within the block.

        Args:
            model: the causal language model.
            batch: number of rows.
            live: False while the model runs for another purpose, such as reflection.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """JSON values that, with the tensors, make the trigger again."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was fitted."""
        ...

    @classmethod
    def load(cls, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Trigger:
        """The trigger of these settings and tensors.

        Raises:
            GuardError: if they do not belong together.
        """
        ...
