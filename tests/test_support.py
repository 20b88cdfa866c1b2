"""The table of engines says what the tests show."""

from __future__ import annotations

from tests import support


def test_the_page_of_engines_is_what_the_tests_lists_say() -> None:
    assert support.PAGE.read_text(encoding="utf-8") == support.page(), "run: python -m tests.support"


def test_every_engine_is_shown_to_train_and_only_known_features_are_shown() -> None:
    found = list(support.shown())
    assert {row.feature for row in found} <= support.FEATURES.keys()
    for engine in support.ENGINES:
        assert support.Shown(engine, "AdamW", 1 if engine == "one process" else 2) in found
