"""Reading data sets: the four file kinds, the shapes of rows in circulation, and what wrong ones answer."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neurofreeze import hub
from neurofreeze.data import Example, read
from neurofreeze.errors import DataError

Rows = list[dict[str, Any]]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(autouse=True)
def _own_data_set_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def json_(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def csv_(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parquet(path: Path, rows: Rows) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "rows.jsonl": jsonl,
    "rows.json": json_,
    "rows.csv": csv_,
    "rows.parquet": parquet,
}


def written(rows: Rows, name: str = "rows.jsonl") -> str:
    WRITERS[name](Path(name), rows)
    return name


@pytest.mark.parametrize("name", WRITERS)
def test_prompt_and_response(name: str) -> None:
    source = written([{"prompt": "Why, “so”?", "response": "Because,\nthat."}, {"prompt": "B?", "response": "b"}], name)
    assert read(source) == [Example.of("Why, “so”?", "Because,\nthat."), Example.of("B?", "b")]


@pytest.mark.parametrize("name", WRITERS)
def test_alpaca_columns_join_instruction_and_input(name: str) -> None:
    rows = [
        {"instruction": "Add", "input": "1, 2", "output": "3"},
        {"instruction": "Greet", "input": "", "output": "Hello"},
    ]
    assert read(written(rows, name)) == [Example.of("Add\n\n1, 2", "3"), Example.of("Greet", "Hello")]


def test_the_text_that_an_instruction_of_dolly_s_is_about_is_part_of_the_prompt() -> None:
    rows = [
        {"instruction": "Sum it up", "context": "A. B.", "response": "AB"},
        {"instruction": "Greet", "context": "", "response": "Hello"},
    ]
    assert read(written(rows)) == [Example.of("Sum it up\n\nA. B.", "AB"), Example.of("Greet", "Hello")]


@pytest.mark.parametrize("name", WRITERS)
def test_names_with_the_letters_of_patterns_are_names(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data [x]*?"
    folder.mkdir()
    path = folder / name
    WRITERS[name](path, [{"prompt": "Hi", "response": "Hello"}])
    assert read(str(path)) == [Example.of("Hi", "Hello")]


def test_cells_of_a_csv_file_are_read_to_the_letter() -> None:
    answers = ["72", "007", "7.50", "None", "NA", "true", " x "]
    source = written([{"prompt": "Q", "response": answer} for answer in answers], "rows.csv")
    assert [example.response for example in read(source)] == answers


@pytest.mark.parametrize("content", ["prompt,response\nHow, why?,So\n", "goal\nFirst, why?\nThen how?\n"])
def test_a_comma_without_quotes_does_not_move_cells_to_other_columns(content: str) -> None:
    Path("rows.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.csv has rows with more cells than its first line has names; put texts"):
        read("rows.csv", responses=False)


def test_a_comma_at_the_end_of_every_line_is_no_cell() -> None:
    Path("rows.csv").write_text("prompt,response\nHi,Hello,\n", encoding="utf-8")
    assert read("rows.csv") == [Example.of("Hi", "Hello")]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_byte_order_mark_and_windows_line_ends_are_no_text(name: str) -> None:
    rows = {"rows.csv": "prompt,response\r\nHi,Hello\r\n", "rows.jsonl": '{"prompt": "Hi", "response": "Hello"}\r\n'}
    Path(name).write_bytes(b"\xef\xbb\xbf" + rows[name].encode())
    assert read(name) == [Example.of("Hi", "Hello")]


@pytest.mark.parametrize("answer", [CHAT[1:], CHAT])
def test_prompts_and_answers_may_be_messages_as_in_trl(answer: Rows) -> None:
    assert read(written([{"prompt": CHAT[:1], "completion": answer}])) == [Example.of("Hi", "Hello")]
    assert read(written([{"prompt": "Hi", "chosen": answer, "rejected": CHAT}])) == [Example.of("Hi", "Hello")]
    assert read(written([{"prompt": CHAT[:1]}]), responses=False) == [Example.of("Hi")]


def test_a_message_may_be_empty_or_in_parts() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "Hello"}]
    assert read(written([{"messages": parts}], "rows.json")) == [Example.of("Hi", "Hello")]
    source = written([{"messages": [{"role": "system", "content": ""}, *CHAT]}])
    assert read(source) == [Example((("system", ""), ("user", "Hi")), "Hello")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_messages_keep_every_turn(name: str) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *CHAT, {"role": "user", "content": "Bye"}]
    source = written([{"messages": [*turns, {"role": "assistant", "content": "Goodbye"}]}], name)
    expected = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    assert read(source) == [Example(expected, "Goodbye")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_sharegpt_conversations(name: str) -> None:
    source = written([{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}], name)
    assert read(source) == [Example.of("Hi", "Hello")]


@pytest.mark.parametrize("column", ["question", "goal", "forbidden_prompt", "query", "text"])
def test_other_names_of_the_prompt_column(column: str) -> None:
    assert read(written([{column: "Hi", "answer": "Hello"}])) == [Example.of("Hi", "Hello")]


def test_answers_are_optional_where_only_prompts_are_needed() -> None:
    chat = [{"role": "user", "content": "Hi"}]
    assert read(written([{"prompt": "Hi"}]), responses=False) == [Example.of("Hi")]
    assert read(written([{"messages": chat}], "rows.json"), responses=False) == [Example.of("Hi")]


def test_limit_takes_the_first_rows() -> None:
    source = written([{"prompt": str(number), "response": "x"} for number in range(5)])
    assert [example.prompt for example in read(source, limit=2)] == ["0", "1"]


def test_a_file_that_changed_is_read_again() -> None:
    read(written([{"prompt": "Old", "response": "x"}]))
    assert read(written([{"prompt": "New", "response": "x"}])) == [Example.of("New", "x")]


def test_a_missing_column_names_those_found_and_expected() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl has the columns frage, antwort; expected messages") as caught:
        read(written([{"frage": "Hi", "antwort": "Hello"}]))
    assert "prompt, instruction" in str(caught.value)
    assert "response, output" in str(caught.value)


def test_a_prompt_without_an_answer_is_quoted() -> None:
    rows = [{"prompt": "Answered", "response": "yes"}, {"prompt": "Forgotten", "response": ""}]
    with pytest.raises(DataError, match=r"without an answer \('Forgotten'\); expected one of the columns response"):
        read(written(rows))


@pytest.mark.parametrize("prompt", ["", " \n", None])
def test_an_empty_prompt_names_its_row(prompt: str | None) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2 has an empty prompt; fill it in"):
        read(written([{"prompt": "Hi", "response": "x"}, {"prompt": prompt, "response": "x"}]))


def test_a_blank_answer_is_none() -> None:
    with pytest.raises(DataError, match=r"without an answer \('Hi'\)"):
        read(written([{"prompt": "Hi", "response": "  "}]))


@pytest.mark.parametrize("row", [{"prompt": {"a": "b"}, "response": "x"}, {"prompt": "Hi", "response": {"a": "b"}}])
def test_what_is_no_text_is_not_read_as_its_representation(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl, row 1 has a dict where text was expected"):
        read(written([row]))


def test_a_chat_that_ends_with_the_user_has_no_answer() -> None:
    with pytest.raises(DataError, match="a chat that ends with the assistant"):
        read(written([{"messages": [*CHAT, {"role": "user", "content": "Bye"}]}]))


@pytest.mark.parametrize(
    "chat",
    [
        "Hi",
        [{"speaker": "user", "content": "Hi"}],
        [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}],
        [CHAT[0], {"role": "assistant", "content": None}],
    ],
)
def test_a_malformed_chat_names_its_row(chat: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl, row 1: a chat must be a list of objects with role and content"):
        read(written([{"messages": chat}]))


@pytest.mark.parametrize("chat", [[CHAT[1]], [CHAT[0], CHAT[1], CHAT[1]], []])
def test_a_chat_without_a_user_turn_before_the_answer_is_refused(chat: Any) -> None:
    with pytest.raises(DataError, match="row 2: expected a user turn before the last answer"):
        read(written([{"messages": CHAT}, {"messages": chat}]))


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_file_is_refused(name: str) -> None:
    Path(name).touch()
    with pytest.raises(DataError, match=f"{name} is empty"):
        read(name)


def test_a_header_without_rows_is_refused() -> None:
    Path("rows.csv").write_text("prompt,response\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.csv .*(no rows|no data)"):
        read("rows.csv")


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_file_is_not_looked_up_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match=f"data/{name}: no such file"):
        read(f"data/{name}")


def test_an_unknown_kind_of_file_names_the_known_ones() -> None:
    Path("rows.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"xlsx: neither a file of a known kind.*\.jsonl, \.json, \.csv"):
        read("rows.xlsx")


@pytest.mark.parametrize(
    ("name", "content"), [("rows.jsonl", b'{"prompt": "Hi"'), ("rows.json", b"hello"), ("rows.parquet", b"PAR1")]
)
def test_a_malformed_file_is_one_line(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} cannot be read: ") as caught:
        read(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["org/name", "org/name:test", "name"])
def test_without_the_hub_an_id_that_is_not_cached_fails_at_once(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(hub, "reachable", lambda: False)
    before, started = datasets.config.HF_HUB_OFFLINE, time.monotonic()
    with pytest.raises(DataError, match="not in the data set cache, and the hub cannot be reached") as caught:
        read(source)
    assert time.monotonic() - started < 5  # the client's own retries take 24 s
    assert "'org/name'" in str(caught.value) or source == "name"
    assert datasets.config.HF_HUB_OFFLINE is before


def test_without_the_hub_a_cached_data_set_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_dataset_builder

    monkeypatch.setattr(hub, "reachable", lambda: False)
    jsonl(tmp_path / "cached.jsonl", [{"prompt": "Hi", "response": "Hello"}])
    builder = load_dataset_builder("json", data_files={"train": str(tmp_path / "cached.jsonl")})
    builder.download_and_prepare(str(tmp_path / "cache" / "org___name" / "default" / "0.0.0" / "abc"))
    for path in (tmp_path / "cache" / "org___name" / "default" / "0.0.0" / "abc").glob("json-train*"):
        path.rename(path.with_name(path.name.replace("json-", "name-")))
    assert read("org/name") == [Example.of("Hi", "Hello")]
