"""Filters from the command line, beside those of conf/guard."""

from __future__ import annotations

from typing import Any

import pytest

from neurofreeze.cli import main
from neurofreeze.config.guard import FilterConfig, GuardConfig
from neurofreeze.errors import ConfigError

MINE = ["judge.name=classifier", "judge.model=m", "judge.unsafe=[toxic]"]


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> list[GuardConfig]:
    """The guards that commands have asked for; nothing is loaded."""
    found: list[GuardConfig] = []
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the console script does

    def load_guarded(config: Any) -> Any:
        found.append(config.guard)
        raise ConfigError("enough")

    monkeypatch.setattr("neurofreeze.serving.loading.load_guarded", load_guarded)
    return found


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_filter_is_added(guard: list[GuardConfig], plus: str) -> None:
    settings = [f"{plus}guard.filters.my-own.{setting}" for setting in MINE]
    assert main(["chat", "model=x", *settings]) == 2
    assert main(["serve", "model=x", "guard=chain", "guard.filters.llama-guard.judge.tokens=9", *settings]) == 2
    for config, names in zip(guard, (["my-own"], ["llama-guard", "my-own"]), strict=True):
        assert list(config.filters) == names
        added = config.filters["my-own"]
        assert isinstance(added, FilterConfig)
        assert (added.judge.name, added.judge.model, added.judge.unsafe) == ("classifier", "m", ["toxic"])
        assert (added.action, added.undecided, added.judge.batch_size) == ("refuse", "unsafe", 8)
    judge = guard[1].filters["llama-guard"].judge
    assert (judge.name, judge.model, judge.tokens) == ("guard", "meta-llama/Llama-Guard-3-1B", 9)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("guard.filters.mine.judge.nmae=x", "unknown setting 'guard.filters.mine.judge.nmae'"),
        ("+guard.filters.mine.judge.nmae=x", "unknown setting 'guard.filters.mine.judge.nmae'"),
        ("guard.filters.mine.judge={nmae:x}", "unknown setting"),
        ("guard.filters.mine.judge.tokens=many", "could not be converted to Integer"),
        ("guard.filters.mine.action=laugh", "guard.filters.*.action is 'laugh'; expected refuse or flag"),
        ("guard.filters.other.action=flag", "guard.filters.*.judge.name is 'phrases'; expected guard"),
    ],
)
def test_what_is_mistyped_is_refused(
    guard: list[GuardConfig], setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"guard.filters.mine.{setting}" for setting in MINE]
    assert main(["chat", "model=x", *settings, setting]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not guard
