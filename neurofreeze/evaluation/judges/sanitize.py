"""What is judged must not speak with the voice of the judge's prompt.

A completion may hold the end of the judge's conversation, a verdict of its own and the beginning of another. So special
tokens and markup are taken out of it, and lines that look like those of the prompt are quoted. This keeps the structure
of the prompt; it cannot keep a judge from being persuaded by plain words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from neurofreeze.errors import JudgeError

# Markup of chat templates in circulation: what a served judge uses is unknown here.
_MARKUP = (
    r"<\|[^<>\n]{0,64}\|>",
    r"<<\s*/?\s*SYS\s*>>",
    r"\[\s*/?\s*(?:INST|SYS|CLS|SEP|MASK|PAD|UNK|SYSTEM\w*|TOOL\w*|AVAILABLE_TOOLS)\s*\]",
    r"[<\[]\s*(?:BEGIN|START|END)\b[^<>\[\]\n]{0,64}[>\]]",
    r"</?(?:s|bos|eos|pad|unk|mask|cls|sep|start_of_turn|end_of_turn|think)>",
)
_TAG = re.compile(r"<<[^<>\n]+>>|<[^<>\s][^<>\n]*>|\[[^\[\]\n]+\]")
_ROLES = ("user:", "assistant:", "agent:", "human:", "system:", "answer:")
_EMPTY = "(nothing)"


class Sanitizer:
    """Cleans requests and answers for one judge.

    Args:
        prompt: the judge's prompt without what is judged; its tags and lines are not let through.
        special_tokens: as the judge's tokenizer writes them.
    """

    def __init__(self, prompt: str = "", special_tokens: Iterable[str] = ()) -> None:
        literal = sorted({*special_tokens, *_TAG.findall(prompt)} - {""}, key=len, reverse=True)
        self._markup = re.compile("|".join([*map(re.escape, literal), *_MARKUP]), re.IGNORECASE)
        lines = {line.strip().lower() for line in self._markup.sub("", prompt).splitlines()}
        self._lines = frozenset(line for line in lines if len(line) > 1)
        self._leads = tuple({*_ROLES, *(line for line in self._lines if line.endswith(":"))})

    def clean(self, text: str) -> str:
        """The text without the judge's voice."""
        text = "\n".join(unicodedata.normalize("NFKC", text).splitlines())
        # Control and format characters, such as a zero-width space inside a marker, are invisible.
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf"))
        # What is taken out may bring the halves of another marker together.
        while (rest := self._markup.sub("", text)) != text:
            text = rest
        return "\n".join(f"> {line}" if self._is_prompt(line) else line for line in text.split("\n")).strip() or _EMPTY

    def _is_prompt(self, line: str) -> bool:
        plain = line.strip().lower()
        return plain in self._lines or plain.startswith(self._leads)


def special_ids(tokenizer: Any, ids: Iterable[int]) -> list[int]:
    """The special tokens among token ids, in their order."""
    special = set(_special(tokenizer))
    # Ordinary text has it too, unless it is also the tokenizer's end or beginning, as in GPT-2's, which needs none.
    special -= {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return [token for token in ids if token in special]


def special_texts(tokenizer: Any) -> list[str]:
    """Every special token of a tokenizer as text, reserved ones too."""
    return list(_special(tokenizer).values())


def require_same_structure(tokenizer: Any, ids: Iterable[int], expected: Iterable[int], label: str) -> None:
    """Raise JudgeError unless two prompts have the same special tokens in the same order.

    Args:
        tokenizer: the judge's.
        ids: the prompt with what is judged.
        expected: the prompt with harmless words in its place.
        label: the judge's name.
    """
    found, wanted = special_ids(tokenizer, ids), special_ids(tokenizer, expected)
    if found != wanted:
        raise JudgeError(
            f"an answer brings special tokens into the prompt of {label}: found {len(found)} of them, expected "
            f"{len(wanted)}; its tokenizer reads them from plain text, so it cannot judge safely"
        )


def _special(tokenizer: Any) -> dict[int, str]:
    added = tokenizer.added_tokens_decoder
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {**{token: str(added[token].content) for token in added if added[token].special}, **dict(named)}
