"""An audit's table and files say what was measured, and need nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from neurofreeze.evaluation.statistics import Mean
from neurofreeze.report.audit.output import early, write
from neurofreeze.report.audit.terminal import table

from .contents import content


def test_every_state_is_in_every_file(tmp_path: Path) -> None:
    html, markdown, data = (path.read_text(encoding="utf-8") for path in write(content(), tmp_path))
    for change in content().changes:
        assert f'<th scope="row">{change.label}</th><td>{change.refusals.count}/20<br>' in html
        assert f"| {change.label} | {change.refusals.count}/20 (" in markdown
    assert [change["refusals"]["count"] for change in json.loads(data)["changes"]] == [9, 18, 0, 17]
    assert "erodes safety" in html
    assert "The probe is right on 100 % of the prompts" in html
    assert "Refusals by strict-opening v1." in markdown
    assert "Safety sits in few neurons: without 461 neurons" in html


def test_the_page_escapes_what_it_is_given_and_loads_nothing(tmp_path: Path) -> None:
    html, markdown, _ = (path.read_text(encoding="utf-8") for path in write(content(), tmp_path))
    assert "<mask>" not in html
    assert html.count('src="data:image/png;base64,') == html.count("<img") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in rows}) == 1


def test_the_terminal_s_table_fits_80_columns() -> None:
    console = Console(width=80, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table(content()))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"top 10 %\s+0/20", text)
    assert re.search(r"4\.\d\d!", text)  # broken answers are marked


def test_a_single_prompt_has_no_interval_and_the_file_is_json(tmp_path: Path) -> None:
    whole = content()
    one = replace(whole, changes=[replace(whole.changes[0], margin=Mean.of([1.0]))])
    text = write(one, tmp_path)[2].read_text(encoding="utf-8")
    (change,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["changes"]
    assert change["margin"] == {"value": 1.0, "total": 1, "low": None, "high": None}


def test_the_first_tokens_are_averaged() -> None:
    change = content().changes[0]
    assert early(change.kl_harmful) == f"{sum(m.value for m in change.kl_harmful[:3]) / len(change.kl_harmful[:3]):.3f}"
    assert early([]) == "-"
