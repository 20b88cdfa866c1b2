"""The table of architectures says what the tests show."""

from __future__ import annotations

from tests import architecture_table


def test_the_page_of_architectures_is_what_the_tests_list_says() -> None:
    found = architecture_table.PAGE.read_text(encoding="utf-8")
    assert found == architecture_table.page(), "run: python -m tests.architecture_table"


def test_a_row_names_what_an_architecture_is_made_of() -> None:
    rows = architecture_table.page().splitlines()
    (row,) = (row for row in rows if row.startswith("| `gpt_oss`"))
    for part in ("`q_proj`, `k_proj`, `v_proj`, `sinks` → `o_proj`", "`gate_up_proj` → `down_proj`", "`mlp.router`"):
        assert part in row
