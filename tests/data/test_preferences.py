"""Preference pairs: formats in circulation give the same pairs, wrong rows are refused, bundled ones hold no harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.data import digest, read
from neurofreeze.data.preferences import Preference, read_preferences
from neurofreeze.errors import DataError
from neurofreeze.evaluation.phrases import phrase_list

ASK, YES, NO = "How do I pick a lock?", "Sure, here is", "I cannot help with that."
USER = {"role": "user", "content": ASK}
PAIR = Preference((("user", ASK),), NO, YES, "safety")


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def written(row: dict[str, Any], path: Path) -> str:
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK, "chosen": NO, "rejected": YES},
        {"question": ASK, "chosen": NO, "rejected": YES},
        {"prompt": [USER], "chosen": [said(NO)], "rejected": [said(YES)]},
        {"prompt": ASK, "chosen": [USER, said(NO)], "rejected": [USER, said(YES)]},
        {"chosen": [USER, said(NO)], "rejected": [USER, said(YES)]},
    ],
)
def test_every_format_gives_the_same_pair(row: dict[str, Any], tmp_path: Path) -> None:
    assert read_preferences(written(row, tmp_path / "pairs.jsonl"), "safety") == [PAIR]


def test_a_table_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f'prompt,chosen,rejected\n{ASK},{NO},"{YES}"\n', encoding="utf-8")
    assert read_preferences(str(path), "safety") == [PAIR]


def test_earlier_turns_belong_to_the_prompt(tmp_path: Path) -> None:
    begun = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, said("Hello"), USER]
    row = {"chosen": [*begun, said(NO)], "rejected": [*begun, said(YES)]}
    (found,) = read_preferences(written(row, tmp_path / "pairs.jsonl"), "helpfulness")
    assert (found.messages, found.response, found.rejected, found.about) == (begun, NO, YES, "helpfulness")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"prompt": ASK, "chosen": NO},
            "row 1 has rejected empty or missing, and the columns prompt, chosen; expe",
        ),
        ({"prompt": ASK, "chosen": NO, "rejected": ""}, "rejected empty"),
        ({"chosen": NO, "rejected": YES}, r"expected a prompt that ends with the user, found \[\]"),
        ({"prompt": " ", "chosen": NO, "rejected": YES}, "row 1 has an empty prompt"),
        ({"prompt": ASK, "chosen": NO, "rejected": NO}, "prefers an answer to itself"),
        ({"prompt": [USER], "chosen": [said(NO), USER], "rejected": [said(YES), USER]}, "one answer of the assistant"),
        ({"prompt": ASK, "chosen": [1], "rejected": [2]}, "list of objects with role and content"),
    ],
)
def test_rows_that_are_no_pair_are_refused(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        read_preferences(written(row, tmp_path / "pairs.jsonl"), "safety")


def test_a_missing_file_and_an_unknown_bundled_set_are_refused() -> None:
    with pytest.raises(DataError, match="no such file"):
        read_preferences("nowhere.jsonl", "safety")
    with pytest.raises(DataError, match="expected one of bundled:preferences/safety, bundled:preferences/helpfulness"):
        read_preferences("bundled:preferences/harm", "safety")


def test_the_rejected_answer_is_part_of_the_digest() -> None:
    assert digest([PAIR]) != digest([Preference(PAIR.turns, NO, "Of course", "safety")])


def test_bundled_safety_pairs_prefer_refusals_to_openings_of_a_few_words() -> None:
    pairs = read_preferences("bundled:preferences/safety", "safety")
    refuses = phrase_list("strict-opening").is_refusal
    assert {pair.prompt for pair in pairs} == {example.prompt for example in read("bundled:harmful/align")}
    assert all(refuses(str(pair.response)) for pair in pairs)
    assert not any(refuses(pair.rejected) for pair in pairs)
    assert all(len(pair.rejected.split()) <= 8 for pair in pairs)


def test_bundled_helpfulness_pairs_prefer_answers() -> None:
    pairs = read_preferences("bundled:preferences/helpfulness", "helpfulness")
    refuses = phrase_list("strict-opening").is_refusal
    assert len(pairs) >= 180
    assert not any(refuses(str(pair.response)) for pair in pairs)
    assert all(len(pair.rejected.split()) < len(str(pair.response).split()) for pair in pairs)
