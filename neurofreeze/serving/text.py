"""One answer as text while its tokens come, up to what ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

Ending = Literal["stop", "length"]


class Answer:
    """Takes tokens and gives the text that is certain by then.

    Args:
        tokenizer: of the model.
        ends: tokens that end an answer; they are no text.
        limit: most tokens.
        stop: texts that end the answer; they and what follows are left out.

    Attributes:
        tokens: taken so far, the one that ends the answer included.
        ending: why it has ended; None while it goes on.
    """

    def __init__(self, tokenizer: Any, ends: frozenset[int], limit: int, stop: Sequence[str] = ()) -> None:
        self.tokens = 0
        self.ending: Ending | None = None
        self._ends, self._limit, self._stop = ends, limit, stop
        self._pieces = _Pieces(tokenizer)
        self._held = ""  # may be the beginning of a stop text

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self.tokens += 1
        if token in self._ends:
            self._held += self._pieces.rest()
            self.ending = "stop"
        else:
            self._held += self._pieces.add(token)
            if self.tokens >= self._limit:
                self._held += self._pieces.rest()
                self.ending = "length"
        places = [self._held.index(text) for text in self._stop if text in self._held]
        if places:
            self._held, self.ending = self._held[: min(places)], "stop"
        certain = len(self._held) - (0 if self.ending else self._begun())
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _begun(self) -> int:
        """How many characters at the end may turn out to begin a stop text."""
        lengths = (
            length
            for text in self._stop
            for length in range(1, min(len(text), len(self._held) + 1))
            if self._held.endswith(text[:length])
        )
        return max(lengths, default=0)


class _Pieces:
    """Text token by token. A token is decoded beside those before it, on which spaces and characters depend."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._told = 0  # of the ids, those whose text has been given

    def add(self, token: int) -> str:
        self._ids.append(token)
        text = self.rest()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):  # bytes of a character that is not complete
            return ""
        self._ids, self._told = self._ids[self._told :], len(self._ids) - self._told
        return text

    def rest(self) -> str:
        """The text that has not been given."""
        before, now = self._decode(self._ids[: self._told]), self._decode(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
