"""Give a fixed text in place of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from neurofreeze.errors import GuardError
from neurofreeze.guard.reactions.base import Call, Decision, Once
from neurofreeze.guard.triggers.base import Step

TEXT = "I'm sorry, but I can't help with that."


@dataclass(frozen=True)
class Refuse:
    """The answer so far is withdrawn and `text` is given instead.

    Attributes:
        text: the whole answer.
    """

    text: str = TEXT
    name: ClassVar[str] = "refuse"
    withdraws: ClassVar[bool] = True
    needs_expert: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_words(self.text)

    def respond(self, call: Call) -> _Refusing:
        """The reaction in one call of generate."""
        return _Refusing(call.answer(self.text))


def require_words(text: object) -> None:
    """Raise GuardError unless a refusal says something."""
    if not isinstance(text, str) or not text.strip():
        raise GuardError(f"the text of a refusal is {text!r}; expected some words")


class _Refusing(Once):
    def __init__(self, answer: list[int]) -> None:
        self.answer = answer

    def react(self, row: int, step: Step) -> Decision:
        """The row's answer is the text."""
        return Decision("blocked", self.answer)
