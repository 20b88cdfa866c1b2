"""A tracker that fails costs one line, never a row and never the run."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.config.schema import Config
from neurofreeze.config.tracker import TrackerConfig
from neurofreeze.stages.context import Run
from neurofreeze.tracking.guarded import Guarded
from neurofreeze.tracking.making import make
from neurofreeze.tracking.session import tracked
from neurofreeze.training.stopping import Stopped
from tests.stages.runs import metrics


class Flaky:
    """Fails at the call of this name; remembers every call."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[tuple[Any, ...]] = []

    def _call(self, name: str, *given: Any) -> None:
        self.calls.append((name, *given))
        if name == self.fails:
            raise OSError("no route\nto host")

    def log(self, row: dict[str, Any]) -> None:
        self._call("log", row["loss"])

    def artifact(self, name: str, path: Path, kind: str) -> None:
        self._call("artifact", name, kind)

    def finish(self, code: int) -> None:
        self._call("finish", code)


def session(run: Run, tracker: Flaky, monkeypatch: pytest.MonkeyPatch, work: Any = lambda: 0) -> int:
    """Two rows and the end, with this tracker in place of the one in the settings."""

    def logging() -> int:
        for loss in (2.0, 1.0):
            run.folder.log({"stage": "train", "loss": loss})
        code: int = work()
        return code

    monkeypatch.setattr("neurofreeze.tracking.session.make", lambda *_: Guarded("W&B", lambda: tracker))
    return tracked(run, "train", logging)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = Run(Config(), tmp_path / "run")
    mask = found.mask("safety")
    mask.mkdir(parents=True)
    (mask / "neuron_mask_config.json").write_text("{}", encoding="utf-8")
    return found


def test_rows_artifacts_and_the_end_are_handed_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Flaky()
    assert session(run, tracker, monkeypatch, lambda: 3) == 3
    assert tracker.calls == [("log", 2.0), ("log", 1.0), ("artifact", "mask-safety", "mask"), ("finish", 3)]


@pytest.mark.parametrize("fails", ["log", "artifact", "finish"])
def test_a_failure_is_one_warning(
    fails: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Flaky(fails)
    assert session(run, tracker, monkeypatch) == 0
    said = capsys.readouterr().out
    assert said == "warning: W&B failed (no route to host); the run goes on, its numbers are in metrics.jsonl\n"
    assert tracker.calls[-1][0] == fails, "nothing more is asked of it"
    assert [row["loss"] for row in metrics(run.folder.path)] == [2.0, 1.0]


def test_work_that_fails_ends_the_tracker_and_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise KeyboardInterrupt

    tracker = Flaky()
    with pytest.raises(KeyboardInterrupt):
        session(run, tracker, monkeypatch, fail)
    assert tracker.calls[-1] == ("finish", 1)
    assert run.folder.tracker is None


def test_a_job_that_a_signal_has_stopped_does_not_wait_for_an_upload(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is requeued after that, and killed soon."""

    def stop() -> int:
        raise Stopped(signal.SIGUSR1, 12)

    class Uploads(Flaky):
        def finish(self, code: int) -> None:
            super().finish(code)
            uploaded.wait(30)

    tracker, uploaded = Uploads(), threading.Event()
    monkeypatch.setattr("neurofreeze.tracking.session._STOPPED_SECONDS", 0.05)
    with pytest.raises(Stopped):
        session(run, tracker, monkeypatch, stop)
    uploaded.set()
    assert tracker.calls == [("log", 2.0), ("log", 1.0), ("finish", 1)]
    assert "the tracker has not ended within 0 s and is left" in capsys.readouterr().out
    assert run.folder.tracker is None


def test_a_library_that_does_not_start_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    tracker = make(Config(tracker=TrackerConfig(name="wandb", mode="offline")), tmp_path, "train")
    assert tracker is not None
    tracker.log({"stage": "train", "loss": 1.0})
    assert capsys.readouterr().out.count("warning: W&B failed (division by zero)") == 1


def test_other_ranks_have_no_tracker(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Flaky()
    monkeypatch.setenv("RANK", "1")
    assert session(run, tracker, monkeypatch) == 0
    assert tracker.calls == []
