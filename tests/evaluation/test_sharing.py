"""Parts of an evaluation that go on where they were interrupted, and what is on the disk meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.evaluation.measure import Part, cut, longest_first
from neurofreeze.evaluation.sharing import shared

PARTS = [Part(what, indices) for what in ("harmful", "general") for indices in ([3, 1], [0, 2], [4])]


class Work:
    """Counts the parts that it is given, and fails at one of them if it has to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.done: list[Part] = []
        self.fails_at = fails_at

    def __call__(self, parts: list[Part]) -> Iterator[list[Any]]:
        for part in parts:
            if len(self.done) == self.fails_at:
                raise KeyboardInterrupt
            self.done.append(part)
            yield values(part)


def values(part: Part) -> list[Any]:
    return [[f"{part.what} {index}", 1 / (index + 3)] for index in part.indices]


def share(folder: Path, work: Work, depends: Any = "these settings") -> list[tuple[Part, list[Any]]]:
    return shared("evaluate", folder, depends, lambda: PARTS, work)


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A folder with the first four of six parts."""
    folder = tmp_path / "evaluate.unfinished"
    with pytest.raises(KeyboardInterrupt):
        share(folder, Work(fails_at=4))
    return folder


def test_every_part_is_done_once_and_nothing_is_left(tmp_path: Path) -> None:
    work = Work()
    assert share(tmp_path / "new", work) == [(part, values(part)) for part in PARTS]
    assert work.done == PARTS
    assert not (tmp_path / "new").exists()


def test_what_was_done_is_not_done_again(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work()
    assert share(interrupted, work) == [(part, values(part)) for part in PARTS]
    assert work.done == PARTS[4:]
    assert "evaluate: goes on after 4 of 6 batches that are done" in capsys.readouterr().out
    assert not interrupted.exists()


def test_a_line_that_was_cut_off_is_done_again_and_the_next_ones_are_whole(interrupted: Path) -> None:
    file = interrupted / "rank-0.jsonl"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(KeyboardInterrupt):
        share(interrupted, Work(fails_at=1))
    work = Work()
    assert share(interrupted, work) == [(part, values(part)) for part in PARTS]
    assert work.done == PARTS[4:], "the one cut off was done in between"


def test_all_ranks_files_count_however_many_there_are_now(interrupted: Path) -> None:
    lines = (interrupted / "rank-0.jsonl").read_text().splitlines()
    (interrupted / "rank-0.jsonl").write_text("\n".join(lines[:2]) + "\n")
    (interrupted / "rank-5.jsonl").write_text("\n".join(lines[2:]) + "\n")
    work = Work()
    share(interrupted, work)
    assert work.done == PARTS[4:]


def test_other_settings_begin_anew(interrupted: Path) -> None:
    work = Work()
    share(interrupted, work, depends="other settings")
    assert work.done == PARTS


def test_nothing_but_values_and_numbers_of_prompts_is_kept(interrupted: Path) -> None:
    rows = [json.loads(line) for line in (interrupted / "rank-0.jsonl").read_text().splitlines() if line]
    assert [set(row) for row in rows] == [{"of", "part", "values"}] * 4
    assert [row["part"] for row in rows] == [list(part) for part in PARTS[:4]]
    assert [row["values"] for row in rows] == [values(part) for part in PARTS[:4]]


def test_the_longest_come_first_and_equal_ones_in_their_order() -> None:
    assert longest_first([2, 5, 2, 9, 5]) == [3, 1, 4, 0, 2]
    assert cut([3, 1, 4, 0, 2], 2) == [[3, 1], [4, 0], [2]]
    assert cut([], 2) == []
