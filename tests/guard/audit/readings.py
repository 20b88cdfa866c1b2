"""Readings made by hand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from neurofreeze.evaluation.measure import Outcomes
from neurofreeze.guard.audit.changes import Change, changes
from neurofreeze.guard.audit.reading import Reading
from neurofreeze.guard.audit.states import State

PROMPTS = 20


def reading(refused: int = 18, margin: float = 6.0, *, garbage: int = 0, loss: float = 2.0, kl: float = 0.0) -> Reading:
    """Of 20 prompts a set; the first ones are refused."""
    return Reading(
        Outcomes(
            refused=[place < refused for place in range(PROMPTS)],
            over_refused=[False] * PROMPTS,
            degenerate=[place < garbage for place in range(2 * PROMPTS)],
            margins=[margin + 0.1 * (place % 3) for place in range(PROMPTS)],
            domain_losses=[],
            general_losses=[loss + 0.01 * place for place in range(PROMPTS)],
            opening_words=["I cannot"] * 2 * PROMPTS,
        ),
        probe_harmful=[2.0, 4.0],
        probe_harmless=[-2.0, -4.0],
        kl_harmful=[[2 * kl, kl], [4 * kl]],
        kl_harmless=[[0.0, 0.0], [kl, 0.0]],
    )


def state(name: str, **fields: Any) -> State:
    return State(name, f"state {name}", fields.pop("series", "steered"), {}, lambda _: nullcontext(), **fields)


def one(found: Reading, original: Reading | None = None, tolerance: float = 0.5) -> Change:
    """The change of a single state."""
    return changes(original or reading(), [state("a")], {"a": found}, tolerance)[0]
