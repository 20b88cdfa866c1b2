"""The table of arms in a terminal, and where there is none."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from neurofreeze.report.content import Content
from neurofreeze.report.terminal import arms_table, comparisons_lines

from .contents import content


def printed(found: Content, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(arms_table(found))
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_counts_and_intervals_are_whole(width: int) -> None:
    text = printed(content(), width)
    assert max(map(len, text.splitlines())) <= width
    for expected in ("58/64", "81-96 %", "49/64", "65-85 %", "4/40", "1/104", "3,465", "±"):
        assert expected in text
    assert "…" not in text
    assert "\x1b" not in text


def test_changed_is_said() -> None:
    *others, last = content().arms
    assert "CHANGED" in printed(content(arms=[*others, replace(last, verified_changed=7)]), 80)
    assert "CHANGED" not in printed(content(), 80)


def test_labels_are_not_markup() -> None:
    [first, *others] = content().arms
    assert "[red]" in printed(content(arms=[replace(first, label="[red] start"), *others]), 100)


def test_paired_tests_in_sentences() -> None:
    assert comparisons_lines(content())[:2] == [
        "safety against none (harmful requests): 12 prompts refused only by safety, 3 only by none, "
        "exact sign test p = 0.035",
        "safety against random (harmful requests): 26 prompts refused only by safety, 1 only by random, "
        "exact sign test p < 0.001",
    ]
    assert comparisons_lines(content(comparisons=[])) == []
