"""The bundled sets: their sizes, that nothing leaks between them, and that no byte changes unnoticed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from importlib import resources

import pytest

from neurofreeze.data import bundled, read, require_disjoint
from neurofreeze.errors import DataError

# An edit to a set changes every number measured with it: change these only together with the CHANGELOG.
SHA256 = {
    "harmful": "88fc8b8824f64bfeeed182d10fc969d9b6085fcaebcdee001e0d5477c2c2fd11",
    "instructions": "01e27af15b41bc02e6ddc102fefca6c8be427c1064e9b46483c1edef11b670b4",
    "lookalikes": "4d93ce0ce4016ff27e9aa9cbe1259dd93713dffbaf31abfae26887ccf0cc6b6e",
    "refusals": "65533bed854686ad2ca7e25bc099caf00816af5b7dafe1f932f88a1b646fcaab",
    "retail_bank": "a6b860f001dfb70017c848d2f37e560dcc0b6b7c05b560f1f1552a67ab2e6c58",
}
SOURCES = [f"bundled:{name}/{split}" for name, splits in bundled.SETS.items() for split in splits]


def rows(name: str) -> list[dict[str, str]]:
    text = (resources.files("neurofreeze.data") / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("name", "digest"), SHA256.items())
def test_no_byte_of_a_set_changes_unnoticed(name: str, digest: str) -> None:
    content = (resources.files("neurofreeze.data") / f"{name}.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest


def test_every_data_file_is_pinned() -> None:
    files = {path.name for path in resources.files("neurofreeze.data").iterdir()}
    assert {name for name in files if name.endswith(".jsonl")} == {f"{name}.jsonl" for name in SHA256}


@pytest.mark.parametrize(
    ("name", "least"), [("harmful", 150), ("lookalikes", 150), ("instructions", 200), ("retail_bank", 300)]
)
def test_a_set_is_as_large_as_documented(name: str, least: int) -> None:
    assert len(rows(name)) >= least
    assert sum(len(bundled.load(source)) for source in SOURCES if source.startswith(f"bundled:{name}/")) == len(
        rows(name)
    ), "rows that no split holds"


@pytest.mark.parametrize("name", ["harmful", "lookalikes"])
def test_ten_categories_are_equally_represented(name: str) -> None:
    counts = Counter(row["category"] for row in rows(name))
    assert len(counts) == 10
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("split", ["align", "calibration", "evaluation"])
def test_every_category_is_in_every_split_of_harmful(split: str) -> None:
    assert len({row["category"] for row in rows("harmful") if row["split"] == split}) == 10


def test_no_prompt_is_in_two_splits_of_any_set() -> None:
    require_disjoint({source: read(source, responses=False) for source in SOURCES})


@pytest.mark.parametrize("source", SOURCES)
def test_no_prompt_is_twice_in_a_split(source: str) -> None:
    keys = [example.key for example in bundled.load(source)]
    assert len(set(keys)) == len(keys)


def test_harmful_requests_are_requests_only() -> None:
    assert {tuple(row) for row in rows("harmful")} == {("id", "category", "split", "prompt")}
    assert {example.response for example in read("bundled:harmful/evaluation", responses=False)} == {None}


@pytest.mark.parametrize("split", ["align", "calibration"])
def test_a_harmful_request_is_answered_by_a_refusal_of_its_category(split: str) -> None:
    category = {row["prompt"]: row["category"] for row in rows("harmful")}
    answers = {row["response"]: row["category"] for row in rows("refusals")}
    examples = read(f"bundled:harmful/{split}")
    assert [answers[str(e.response)] for e in examples] == [category[e.prompt] for e in examples]


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "bundled:harmful/evaluation"])
def test_every_other_row_has_an_answer(source: str) -> None:
    assert all(example.response for example in read(source))


@pytest.mark.parametrize("source", ["bundled:harmless/train", "bundled:harmful/train", "bundled:harmful", "bundled:"])
def test_an_unknown_set_or_split_names_the_known_ones(source: str) -> None:
    with pytest.raises(DataError, match="no bundled data") as caught:
        read(source)
    assert all(known in str(caught.value) for known in SOURCES)
