"""Checks of a choice on a rank whose file system does not show yet what rank 0 has written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from neurofreeze.config.schema import ValidateConfig
from neurofreeze.stages import validate


def test_a_rank_prints_what_it_was_told(capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"margins": [1.0, 2.0, 3.0], "losses": [2.0, 2.5]}
    told = {
        "validate-prune": {"pruned": {"whole": measured, "chosen": {**measured, "margins": [0.5, 1.5, 1.0]}}},
        "validate-stability": {"overlaps": [{"jaccard": 0.25, "by_chance": 0.125}]},
    }
    run: Any = SimpleNamespace(
        config=SimpleNamespace(validate=ValidateConfig(mode="prune", splits=1)),
        folder=SimpleNamespace(run=lambda stage, settings, work: told[stage], settings=lambda stage: None),
        data=SimpleNamespace(digests=lambda *roles: {}),
        select_settings=dict,
    )
    validate.run(run)
    printed = capsys.readouterr().out
    assert "1.000 (-1.151 to 3.151)" in printed
    assert "overlap by 0.250, by chance 0.125" in printed
