"""What every reaction does once a trigger has fired."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from neurofreeze.evaluation.generation import continuation_ids
from neurofreeze.guard.events import Outcome
from neurofreeze.guard.triggers.base import Step


@dataclass
class Call:
    """The call of generate that a reaction acts in.

    Attributes:
        model, tokenizer: what is guarded.
        prompts: token ids of each row's prompt without padding.
        budget: how many tokens an answer may have.
        end: the token that ends an answer, the tokenizer's if generate has none; None if there is none at all.
        away: the model is running for another purpose, and its gates look away.
    """

    model: Any
    tokenizer: Any
    prompts: list[list[int]]
    budget: int
    end: int | None
    away: bool = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A block in which the model may run for another purpose, such as reflection."""
        self.away = True
        try:
            yield
        finally:
            self.away = False

    @property
    def context(self) -> int | None:
        """How many tokens the model reads; None if its config does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def say(self, ids: list[int], tokens: int) -> list[int]:
        """Up to `tokens` token ids that greedily follow `ids`, with the one that ends them if there is one.

        Fewer, or none, where the context ends.
        """
        if self.context is not None and (tokens := min(tokens, self.context - len(ids))) < 1:
            return []
        with self.aside():
            return continuation_ids(self.model, self.tokenizer, [ids], max_new_tokens=tokens, batch_size=1)[0]

    def text(self, ids: list[int]) -> str:
        """Token ids as text, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def answer(self, text: str) -> list[int]:
        """A text as the token ids of a whole answer, cut to the budget."""
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*ids, *([] if self.end is None else [self.end])][: self.budget]


@dataclass(frozen=True)
class Decision:
    """What becomes of one row.

    Attributes:
        outcome: for the event.
        answer: token ids of the answer to give in place of the row's own; None to go on with it.
        settled: whether the row needs no further verdict.
        details: for the event.
    """

    outcome: Outcome
    answer: list[int] | None = None
    settled: bool = True
    details: dict[str, Any] = field(default_factory=dict)


class Responder(Protocol):
    """A reaction's state in one call of generate."""

    def react(self, row: int, step: Step) -> Decision:
        """Decide about a row whose trigger has just fired."""
        ...

    def adjust(self, step: Step, scores: torch.Tensor) -> torch.Tensor:
        """Scores [batch, vocabulary] of the next token, changed where an earlier decision says so.

        `step.rows` are those that are neither finished nor replaced.
        """
        ...

    def lasts(self, row: int) -> bool:
        """Whether an earlier decision may still change this row's scores."""
        ...


class Reaction(Protocol):
    """What to do about a row whose trigger has fired.

    Attributes:
        name: in files and events.
        withdraws: whether another answer may take the place of what has been generated.
        needs_expert: whether it asks the expert.
    """

    name: ClassVar[str]
    withdraws: ClassVar[bool]
    needs_expert: ClassVar[bool]

    def respond(self, call: Call) -> Responder:
        """The reaction in one call of generate."""
        ...


class Once:
    """A responder that changes no scores."""

    def adjust(self, step: Step, scores: torch.Tensor) -> torch.Tensor:
        """The same scores."""
        return scores

    def lasts(self, row: int) -> bool:
        """Never."""
        return False
