"""What a guard decided, for whoever must not rely on the answer alone. Holds numbers and names, never an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

# passed: judged to the end and never fired; flagged, continued, blended: fired, and the answer goes on as it was, after
# a reflection, or from a blend; revised, blocked: another answer is given in its place.
Outcome = Literal["passed", "flagged", "continued", "blended", "revised", "blocked"]


@dataclass(frozen=True)
class Event:
    """One decision about one row of a batch.

    Attributes:
        row: of the batch, counted from 0; of several answers to one prompt each is a row.
        step: how many tokens of the answer there were; 0 is before the first.
        guard: the trigger's name, or the filter's label.
        value: what the trigger measured; of "passed", the largest of all steps. None of filters.
        threshold: what it is compared with, "at least".
        reaction: the reaction's name.
        outcome: what became of the answer.
        benign_rate: share of the calibration's benign prompts that reach this value: about 0.5 says nothing, 0.001 is
            rare. None without calibration.
        harmful_rate: the same of its harmful prompts.
        details: what else the reaction found, such as a verdict or alpha. JSON values.
    """

    row: int
    step: int
    guard: str
    value: float | None
    threshold: float | None
    reaction: str
    outcome: Outcome
    benign_rate: float | None = None
    harmful_rate: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The event as JSON values."""
        return asdict(self)


OnEvent: TypeAlias = Callable[[Event], None]
