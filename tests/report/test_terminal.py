"""The table of arms in a terminal, and where there is none."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from neurofreeze.report.content import Content
from neurofreeze.report.terminal import arms_table, choice_lines, comparisons_lines
from neurofreeze.strategies.stability import Overlap

from .contents import content, pruned, ratio_curves


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


def test_steps_are_shown_where_arms_were_not_trained_equally_long() -> None:
    *others, last = content().arms
    text = printed(content(arms=[*others, replace(last, losses=[(80, 1.0)])]), 80)
    assert "80 steps" in text
    assert text.count("40 steps") == 2
    assert "steps" not in printed(content(), 80)


def test_paired_tests_in_sentences() -> None:
    assert comparisons_lines(content())[:2] == [
        "safety against none (harmful requests): 12 prompts refused only by safety, 3 only by none, "
        "exact sign test p = 0.035",
        "safety against random (harmful requests): 26 prompts refused only by safety, 1 only by random, "
        "exact sign test p < 0.001",
    ]
    assert comparisons_lines(content(comparisons=[])) == []


def test_checks_of_the_choice_in_one_line_each() -> None:
    overlaps = [Overlap(0.61, 0.08), Overlap(0.55, 0.08)]
    assert choice_lines(content(search=ratio_curves(), pruned=pruned(), overlaps=overlaps)) == [
        "ratios found by pruning: ESU 1 %, EUU 20 % (the largest ratio tried; a larger one may fit too), RU 0.5 % "
        "(no ratio fits, the smallest is taken: even the smallest worsens the refusal margin)",
        "without the chosen neurons the refusal margin falls by 6.104 (5.584 to 6.624) and the loss rises by 0.213 "
        "(0.173 to 0.253); without random ones by -0.300 to 0.500 and by 0.100 to 0.140, 3 draws",
        "choices on halves of the calibration sets overlap by 0.580, by chance 0.080, 2 splits",
    ]
    assert choice_lines(content()) == []
    [one_draw] = choice_lines(content(pruned=pruned(1)))
    assert one_draw.endswith("without random ones by -0.300 and by 0.100, 1 draw")
