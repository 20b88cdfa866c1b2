"""Which batches fall to a rank."""

from __future__ import annotations

from typing import Any

import pytest

from neurofreeze.strategies.passes import share


def test_a_process_that_is_not_connected_to_others_has_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Any] = [0, 1, 2]
    monkeypatch.setenv("RANK", "1")  # as a launcher sets it, before the ranks are connected
    assert share(batches) == batches
