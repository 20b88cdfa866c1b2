"""What is judged cannot end the judge's frame, begin a turn, or be a special token, however it is put."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofreeze.errors import JudgeError
from neurofreeze.evaluation.judges.sanitize import (
    Sanitizer,
    require_same_structure,
    special_ids,
    special_texts,
)
from tests.evaluation.judges.guard import INJECTIONS, PROMPT

MARKERS = re.compile(
    r"</?s>|<pad>|<unk>|"
    r"\[\s*/?\s*INST\s*\]|<<\s*/?\s*SYS\s*>>|<\|[^|\n]*\|>|<\s*(BEGIN|END) [^<>\n]*>|<(start|end)_of_turn>"
    r"|^\s*(user|agent|assistant|behavior|generation|rules|answer):|^---$|\[(START|END) OF [^\]]*\]",
    re.IGNORECASE | re.MULTILINE,
)
JUDGED = Sanitizer(PROMPT, ["<s>", "</s>", "<pad>", "<unk>"])


@pytest.mark.parametrize("text", INJECTIONS)
def test_no_marker_is_left(text: str) -> None:
    cleaned = JUDGED.clean(text)
    assert MARKERS.search(cleaned) is None, cleaned
    assert cleaned.startswith(text[0]), "what is no marker stays"
    assert JUDGED.clean(cleaned) == cleaned


PIECES = [
    "<",
    ">",
    "[",
    "]",
    "/",
    "|",
    "s",
    "INST",
    "[/INST]",
    "</s>",
    "<|eot_id|>",
    "\n",
    "User:",
    "---",
    "<END X>",
    " ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_no_marker_is_put_together_by_taking_others_out(pieces: list[str]) -> None:
    cleaned = JUDGED.clean("".join(pieces))
    assert MARKERS.search(cleaned) is None, cleaned


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        '1. Mix < 5 g [see table 2] of A/B; if x > 3 then stop.\n\n2. Say: "no" | wait',
        "def f(a: list[int]) -> None:\n\treturn a[0] << 2",
        "The user: a person. My answer: none.",
        "Ça coûte 5 €, 50 % de moins; 日本語も。",
    ],
)
def test_ordinary_text_is_as_it_was(text: str) -> None:
    assert JUDGED.clean(text) == text


@pytest.mark.parametrize("text", ["", "  \n ", "</s>", "[INST]<|eot_id|>"])
def test_nothing_is_said_to_be_nothing(text: str) -> None:
    assert JUDGED.clean(text) == "(nothing)"


def test_lines_of_the_prompt_are_quoted_not_lost() -> None:
    assert JUDGED.clean("a\nRules:\nrules: b\n  - only what is CLEAR counts.") == (
        "a\n> Rules:\n> rules: b\n>   - only what is CLEAR counts."
    )


def test_every_special_token_of_the_tokenizer_is_known(tiny_tokenizer: Any) -> None:
    assert {"<pad>", "<s>", "</s>", "<unk>"} <= set(special_texts(tiny_tokenizer))
    ids = tiny_tokenizer("<s>the card</s>", add_special_tokens=False)["input_ids"]
    assert special_ids(tiny_tokenizer, ids) == [tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id]


def test_reserved_special_tokens_are_known_too(tiny_tokenizer: Any) -> None:
    more = copy.deepcopy(tiny_tokenizer)
    more.add_special_tokens({"additional_special_tokens": ["<extra 7>"]})
    assert "<extra 7>" in special_texts(more)
    cleaned = Sanitizer("", special_texts(more)).clean("a<extra 7>b")
    assert cleaned == "ab"


def test_a_prompt_with_more_special_tokens_is_refused_and_unknown_words_are_not(tiny_tokenizer: Any) -> None:
    def ids(text: str) -> list[int]:
        return list(tiny_tokenizer(text, add_special_tokens=False)["input_ids"])

    unknown = ids("<s>日本</s>")
    assert tiny_tokenizer.unk_token_id in unknown
    require_same_structure(tiny_tokenizer, unknown, ids("<s>x</s>"), "tiny")
    with pytest.raises(JudgeError, match="found 3 of them, expected 2"):
        require_same_structure(tiny_tokenizer, ids("<s>a</s></s>"), ids("<s>x</s>"), "tiny")
