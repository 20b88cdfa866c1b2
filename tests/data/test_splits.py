"""A prompt in two roles makes a result worthless, so it is found however it is dressed up."""

from __future__ import annotations

import pytest

from neurofreeze.data import Example, require_disjoint
from neurofreeze.errors import DataError


def test_disjoint_splits_pass() -> None:
    require_disjoint({"data.train": [Example.of("One?")], "data.harmful": [Example.of("Two?")], "data.general": []})


@pytest.mark.parametrize("twin", ["How do I reset my PIN?", "how do i reset my pin", "How do I... reset  my pin?!"])
def test_a_duplicate_is_found_without_regard_to_case_punctuation_and_spacing(twin: str) -> None:
    train = [Example.of("Something else"), Example.of("How do I reset my PIN?", "Like this.")]
    with pytest.raises(DataError, match=r"in both data\.train and data\.holdout"):
        require_disjoint({"data.train": train, "data.utility": [], "data.holdout": [Example.of(twin, "Or so.")]})


def test_the_message_quotes_the_prompt() -> None:
    with pytest.raises(DataError, match="reset my pin"):
        require_disjoint({"a": [Example.of("Reset my PIN")], "b": [Example.of("reset my pin")]})


def test_a_repetition_within_one_split_is_allowed() -> None:
    require_disjoint({"data.train": [Example.of("One?"), Example.of("one")], "data.harmful": [Example.of("Two?")]})
