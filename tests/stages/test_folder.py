"""RunFolder: what is complete is not done again, and nothing complete is replaced without being asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neurofreeze.errors import RunError
from neurofreeze.stages.folder import RunFolder, settings_digest

SETTINGS = {"seed": 0, "training": {"steps": 16, "learning_rate": 5e-5}, "arms": ["none", "safety"]}


class Work:
    """Counts how often it is done."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self) -> dict[str, Any]:
        self.done += 1
        return {"number": self.done}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "a")


def marker(folder: RunFolder) -> Path:
    return folder.path / "stages" / "select.json"


def test_a_complete_stage_is_reused(folder: RunFolder) -> None:
    work = Work()
    assert folder.run("select", SETTINGS, work) == {"number": 1}
    assert folder.run("select", SETTINGS, work) == {"number": 1}
    assert RunFolder(folder.path).run("select", json.loads(json.dumps(SETTINGS)), work) == {"number": 1}
    assert work.done == 1


def test_other_settings_are_refused_naming_each_that_differs(folder: RunFolder) -> None:
    work = Work()
    folder.run("select", SETTINGS, work)
    other = {**SETTINGS, "seed": 1, "training": {"steps": 16, "learning_rate": 1e-3}}
    with pytest.raises(RunError, match="already holds select with other settings") as caught:
        folder.run("select", other, work)
    text = str(caught.value)
    assert "(seed was 0, is 1; training.learning_rate was 5e-05, is 0.001)" in text
    assert "name=..." in text
    assert "overwrite=true" in text
    assert work.done == 1


def test_a_setting_that_is_new_or_gone_counts_as_different(folder: RunFolder) -> None:
    folder.run("select", SETTINGS, Work())
    with pytest.raises(RunError, match="granularity was None, is 'head'"):
        folder.run("select", {**SETTINGS, "granularity": "head"}, Work())


def test_overwrite_redoes_a_stage_with_other_settings_only(folder: RunFolder) -> None:
    work, forced = Work(), RunFolder(folder.path, overwrite=True)
    folder.run("select", SETTINGS, work)
    assert forced.run("select", SETTINGS, work) == {"number": 1}
    assert forced.run("select", {**SETTINGS, "seed": 1}, work) == {"number": 2}
    assert folder.run("select", {**SETTINGS, "seed": 1}, work) == {"number": 2}


def test_a_stage_whose_output_is_gone_is_done_again(folder: RunFolder) -> None:
    work = Work()
    outputs = [folder.path / "masks", folder.path / "groups.safetensors"]
    outputs[0].mkdir()
    outputs[1].touch()
    folder.run("select", SETTINGS, work, *outputs)
    folder.run("select", SETTINGS, work, *outputs)
    assert work.done == 1
    outputs[1].unlink()
    folder.run("select", SETTINGS, work, *outputs)
    assert work.done == 2


def test_a_stage_that_fails_is_not_complete(folder: RunFolder) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        folder.run("select", SETTINGS, fail)
    assert folder.result("select") is None
    assert folder.run("select", SETTINGS, Work()) == {"number": 1}


def test_a_stage_that_fails_while_redone_is_not_complete_either(folder: RunFolder) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("power cut")

    folder.run("select", SETTINGS, Work())
    with pytest.raises(RuntimeError, match="power cut"):
        RunFolder(folder.path, overwrite=True).run("select", {**SETTINGS, "seed": 1}, fail)
    assert folder.result("select") is None


@pytest.mark.parametrize("content", ['{"stage": "select", "sett', "", "[]", '{"stage": "select"}'])
def test_a_corrupted_marker_is_named_not_trusted(folder: RunFolder, content: str) -> None:
    folder.run("select", SETTINGS, Work())
    marker(folder).write_text(content, encoding="utf-8")
    calls: list[Callable[[], Any]] = [
        lambda: folder.run("select", SETTINGS, Work()),
        lambda: folder.result("select"),
        lambda: folder.required("select", "select"),
    ]
    for call in calls:
        with pytest.raises(RunError, match=r"select\.json .*delete it to redo the stage"):
            call()


def test_a_marker_says_what_was_done_and_how_long_it_took(folder: RunFolder) -> None:
    folder.run("select", SETTINGS, Work())
    content = json.loads(marker(folder).read_text(encoding="utf-8"))
    assert content["stage"] == "select"
    assert content["settings"] == SETTINGS
    assert content["result"] == {"number": 1}
    assert content["seconds"] >= 0
    assert content["version"]


def test_what_a_missing_stage_needs_is_named(folder: RunFolder) -> None:
    with pytest.raises(RunError, match=r"no complete train-safety stage; run `neurofreeze train` first"):
        folder.required("train-safety", "train")


def test_metrics_are_appended_as_json_lines(folder: RunFolder) -> None:
    folder.log({"loss": 1.5})
    RunFolder(folder.path).log({"loss": 1.25})
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["loss"] for row in rows] == [1.5, 1.25]
    assert all(row["time"] > 0 for row in rows)


def test_too_little_space_is_told_before_anything_is_written(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000_000))
    folder.require_space(2_000_000_000)
    with pytest.raises(RunError, match=r"needs about 2\.1 GB in .*, but 2\.0 GB are free; .*hydra\.run\.dir=FOLDER"):
        folder.require_space(2_100_000_000)


def test_a_settings_digest_ignores_the_order_of_keys_and_sees_every_value() -> None:
    assert settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1})
    assert settings_digest({"a": 1, "b": 2}) != settings_digest({"a": 1, "b": 3})
