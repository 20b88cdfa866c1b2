"""One prompt with or without its answer, and the digests by which splits are compared."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")  # soft hyphens, and spaces of no width


@dataclass(frozen=True)
class Example:
    """A conversation up to the answer, and the answer.

    Attributes:
        turns: (role, content) pairs, the last one from the user.
        response: the assistant's answer, None where only the prompt is known.
    """

    turns: tuple[tuple[str, str], ...]
    response: str | None = None

    @classmethod
    def of(cls, prompt: str, response: str | None = None) -> Example:
        """A single-turn example."""
        return cls((("user", prompt),), response)

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return self.turns[-1][1]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns in the form chat templates take."""
        return [{"role": role, "content": content} for role, content in self.turns]

    @property
    def key(self) -> str:
        """SHA-256 of the prompt without regard to case, punctuation, spacing and how Unicode writes a letter."""
        plain = _INVISIBLE.sub("", unicodedata.normalize("NFKC", self.prompt)).casefold()
        return hashlib.sha256(" ".join(re.findall(r"\w+", plain)).encode()).hexdigest()

    @property
    def record(self) -> str:
        """The conversation and its answer to the letter, as digests take them."""
        return f"{self.turns!r} {self.response!r}"


def digest(examples: Iterable[Example]) -> str:
    """SHA-256 over conversations and answers to the letter, in their order, by which training draws them."""
    lines = [example.record for example in examples]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
