"""TensorBoard: the numbers of metrics.jsonl, read back from its event files by its own reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.config.schema import Config
from neurofreeze.config.tracker import TrackerConfig
from neurofreeze.errors import ConfigError
from neurofreeze.stages.folder import RunFolder
from neurofreeze.tracking.making import make
from tests.stages.runs import metrics

CONFIG = Config(tracker=TrackerConfig(name="tensorboard"))


def logged(folder: Path, *rows: dict[str, Any]) -> None:
    """One session in a run folder."""
    run = RunFolder(folder)
    run.tracker = make(CONFIG, folder, "train")
    assert run.tracker is not None
    for row in rows:
        run.log(row)
    run.tracker.artifact("mask", folder, "mask")
    run.tracker.finish(0)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_number_is_a_scalar_at_its_step_over_both_sessions(tmp_path: Path) -> None:
    none = {"stage": "train", "arm": "none"}
    logged(tmp_path, {**none, "global_step": 1, "loss": 2.5}, {"stage": "select", "seconds": 3.0})
    safety = {"stage": "train", "arm": "safety", "global_step": 1, "loss": 2.0}
    monitor = {"stage": "monitor", "arm": "safety", "global_step": 2, "refusals": [1, 4], "updates": {"rest": 0.5}}
    logged(tmp_path, {**none, "global_step": 2, "loss": 1.5}, safety, monitor)
    assert scalars(tmp_path) == {
        "train/none/loss": [(1, 2.5), (2, 1.5)],
        "select/seconds": [(0, 3.0)],
        "train/safety/loss": [(1, 2.0)],
        "monitor/safety/updates/rest": [(2, 0.5)],
    }
    assert len(metrics(tmp_path)) == 5


def test_numbers_are_on_the_disk_before_the_run_ends(tmp_path: Path) -> None:
    tracker = make(CONFIG, tmp_path, "train")
    assert tracker is not None
    tracker.log({"stage": "align", "global_step": 7, "loss": 1.0})
    assert scalars(tmp_path) == {"align/loss": [(7, 1.0)]}
    tracker.finish(0)


def test_a_missing_package_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurofreeze.tracking.tensorboard.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"tracker=tensorboard needs .* pip install 'neurofreeze\[tensorboard\]'"):
        make(CONFIG, tmp_path, "train")


def test_without_a_tracker_there_is_metrics_jsonl_alone(tmp_path: Path) -> None:
    assert make(replace(CONFIG, tracker=TrackerConfig()), tmp_path, "train") is None
