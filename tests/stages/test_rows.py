"""Rows of metrics.jsonl when jobs were killed in between: every step counts once, and none is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from neurofreeze.stages.folder import RunFolder
from neurofreeze.stages.rows import current, read_rows


def steps(folder: RunFolder) -> list[tuple[str, int, int, float]]:
    rows = current(read_rows(folder.path / "metrics.jsonl"))
    return [(row["arm"], row["attempt"], row["global_step"], row["loss"]) for row in rows if "loss" in row]


def train(folder: RunFolder, arm: str, first: int, last: int) -> None:
    log = folder.attempt("train", arm)
    for step in range(first, last + 1):
        log({"global_step": step, "loss": step + 0.5})


def test_a_later_attempt_takes_the_place_of_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    train(folder, "none", 1, 2)
    train(folder, "safety", 1, 4)
    folder.log({"stage": "evaluate", "seconds": 1.0})
    train(folder, "safety", 3, 3)  # killed again
    train(folder, "safety", 4, 5)
    safety = [("safety", 1, 1, 1.5), ("safety", 1, 2, 2.5), ("safety", 2, 3, 3.5), ("safety", 3, 4, 4.5)]
    assert steps(folder) == [("none", 1, 1, 1.5), ("none", 1, 2, 2.5), *safety, ("safety", 3, 5, 5.5)]
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert len(rows) == 2 + 4 + 1 + 1 + 2, "nothing is taken out of the file"
    assert {"stage": "evaluate", "seconds": 1.0}.items() <= current(rows)[4].items()


def test_an_attempt_that_begins_anew_replaces_all_before_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    train(folder, "safety", 1, 4)
    train(folder, "safety", 1, 2)
    assert steps(folder) == [("safety", 2, 1, 1.5), ("safety", 2, 2, 2.5)]


def test_alignment_has_no_arm(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for _ in range(2):
        folder.attempt("align")({"global_step": 1})
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["attempt"], "arm" in row) for row in rows] == [(1, False), (2, False)]
    assert [row["attempt"] for row in current(rows)] == [2]


def test_a_row_that_was_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    train(folder, "safety", 1, 2)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert [row["global_step"] for row in read_rows(path)] == [1]
    train(folder, "safety", 2, 3)
    assert [(row["attempt"], row["global_step"]) for row in read_rows(path)] == [(1, 1), (2, 2), (2, 3)]


def test_nor_does_one_before_the_row_of_a_stage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "select"}\n{"sta', encoding="utf-8")
    folder = RunFolder(tmp_path)
    folder.run("evaluate-none", {}, dict)
    train(folder, "safety", 1, 1)
    assert [row["stage"] for row in read_rows(path)] == ["select", "evaluate-none", "train"]


def test_without_a_file_there_are_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_only_rank_0_cuts_off_what_it_may_be_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "select"}\n{"sta', encoding="utf-8")
    monkeypatch.setenv("RANK", "1")
    RunFolder(tmp_path).attempt("train", "none")({"global_step": 1})
    assert path.read_text(encoding="utf-8") == '{"stage": "select"}\n{"sta'
    monkeypatch.setenv("RANK", "0")
    RunFolder(tmp_path).attempt("train", "none")({"global_step": 1})
    assert [row["stage"] for row in read_rows(path)] == ["select", "train"]
