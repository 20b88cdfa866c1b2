"""Numbers as a reader sees them."""

from __future__ import annotations

import pytest

from neurofreeze.evaluation.statistics import Mean
from neurofreeze.report.card import code, hub_id
from neurofreeze.report.formatting import duration, listed, mean_interval, p_value, share


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (0, 10, "0 %"),
        (1, 10, "10 %"),
        (75, 1000, "7.5 %"),
        (1, 1000, "0.10 %"),
        (1, 10**6, "< 0.01 %"),
        (0, 0, "-"),
    ],
)
def test_a_share_is_never_zero_for_something(part: int, whole: int, expected: str) -> None:
    assert share(part, whole) == expected


def test_p_values() -> None:
    assert [p_value(p) for p in (0.0004, 0.0352, 0.5, 1.0)] == [
        "p < 0.001",
        "p = 0.035",
        "p = 0.50",
        "p = 1.00",
    ]


def test_signs_in_an_interval_cannot_be_misread() -> None:
    assert mean_interval(Mean(0.0, 5, -0.3, 0.3)) == "-0.30 to 0.30"
    assert mean_interval(Mean(1.0, 5, 0.9, 1.1)) == "0.90-1.10"


def test_durations_and_lists() -> None:
    assert [duration(s) for s in (0.31, 48, 725, 12_000)] == ["0.3 s", "48 s", "12 min 5 s", "3 h 20 min"]
    assert [listed(items) for items in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_markdown_code_spans_hold_anything() -> None:
    assert [code(text) for text in ("x", "a`b", "`", "a\n|b")] == ["`x`", "``a`b``", "`` ` ``", r"`a \|b`"]


def test_hub_ids() -> None:
    assert hub_id("org/model-1.5_b")
    assert not any(map(hub_id, (None, "gpt2", "./runs/x", "/abs/path", "a/b/c", "org/model\n")))
