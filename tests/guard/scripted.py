"""A trigger that measures what a test tells it to, and prompts for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from neurofreeze.guard.triggers.base import Step

PROMPTS = ("I lost my card", "what is the fee for a transfer", "open an account")


@dataclass(frozen=True)
class Scripted:
    """Value 1 at the given (row, step) pairs, else 0; `seen` notes what it was asked for."""

    fires: frozenset[tuple[int, int]] = frozenset()
    seen: list[tuple[int, int]] = field(default_factory=list)
    fired_rows: list[int] = field(default_factory=list)
    name: ClassVar[str] = "scripted"
    needs_expert: ClassVar[bool] = False
    threshold: ClassVar[float | None] = 0.5
    prompts: ClassVar[tuple[str, ...]] = ()

    @contextmanager
    def watch(self, model: Any, batch: int, live: Callable[[], bool]) -> Iterator[Scripted]:
        yield self

    def values(self, step: Step) -> torch.Tensor:
        self.seen.extend((row, step.number) for row in step.rows)
        return torch.tensor([float((row, step.number) in self.fires) for row in step.rows])

    def fired(self, rows: list[int]) -> None:
        self.fired_rows.extend(rows)

    def settings(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}


def batch(tokenizer: Any, prompts: Sequence[str] = PROMPTS) -> dict[str, Any]:
    """Prompts padded on the left, with what generate needs to run on for 12 tokens."""
    encoded = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    return {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 12, "pad_token_id": tokenizer.pad_token_id}


class Tape:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1
