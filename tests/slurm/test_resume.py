"""Jobs on a real cluster that are signalled, preempted or killed while they train: they go on to the same result."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neurofreeze.launcher.record import Record
from neurofreeze.stages.rows import current, read_rows
from neurofreeze.verification import verify
from tests.stages.runs import neurofreeze, weights

from .cluster import SlurmCluster

pytestmark = pytest.mark.slow

HELD = Path(__file__).parents[1] / "training" / "held.py"
STEPS = 4
ARM = ("arms=[safety]", "training.bf16=false")


@pytest.fixture(scope="module")
def selected(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a mask, to copy."""
    folder = tmp_path_factory.mktemp("selected") / "run"
    assert neurofreeze("select", tiny_checkpoint, folder, *ARM) == 0
    return folder


class Training:
    """A job of two nodes that trains an arm, and stands still at a step until it is let go."""

    def __init__(self, slurm: SlurmCluster, model: Path, folder: Path, backend: str, hold: str, *more: str) -> None:
        self.slurm = slurm
        self.model = model
        self.folder = folder
        self.overrides = [*ARM, f"backend={backend}", "cluster=slurm", "cluster.nodes=2", *more]
        self.python = folder.with_name(f"{folder.name}-python")
        # In the place of `python -m MODULE ...`
        self.python.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} {HELD} {hold} "$@"\n', encoding="utf-8")
        self.python.chmod(0o755)
        self.job = self.submit()

    def submit(self) -> str:
        """Submit it, or submit it again; returns the job's id."""
        given = [*self.overrides, f"cluster.python={self.python}", "cluster.cpus_per_rank=1"]
        assert neurofreeze("train", self.model, self.folder, *given) == 0
        record = Record.read(self.folder)
        assert record is not None
        assert record.job_id is not None
        return record.job_id

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something while the job runs."""
        deadline = time.monotonic() + 200
        while not condition():
            job = self.slurm.job(self.job)
            running = job["JobState"] in ("PENDING", "RUNNING") and time.monotonic() < deadline
            assert running, f"{job}\n{self.slurm.output(job)}"
            time.sleep(0.2)

    def until_step(self, step: int) -> None:
        """Wait until a step is logged."""
        path = self.folder / "metrics.jsonl"
        self.until(lambda: any(row.get("global_step") == step for row in read_rows(path)))

    def let_go(self) -> None:
        """Do not stand still any more."""
        (self.folder / "go").touch()

    @property
    def complete(self) -> list[str]:
        """The checkpoints that count."""
        unfinished = self.folder / "arms" / "safety.unfinished"
        return [path.parent.name for path in unfinished.glob("checkpoint-*/complete.json")]


@pytest.fixture
def trainings(
    slurm: SlurmCluster, selected: Path, tiny_checkpoint: Path, tmp_path: Path
) -> Callable[..., tuple[Training, Training]]:
    """Starts a job that is to be interrupted, and its twin that is not."""

    def start(backend: str, hold: str, *more: str) -> tuple[Training, Training]:
        for name in ("interrupted", "whole"):
            shutil.copytree(selected, tmp_path / name)
        (tmp_path / "whole" / "go").touch()
        whole = Training(slurm, tiny_checkpoint, tmp_path / "whole", backend, hold, *more)
        return Training(slurm, tiny_checkpoint, tmp_path / "interrupted", backend, hold, *more), whole

    return start


def same_result(interrupted: Training, whole: Training) -> None:
    """Both have ended with the same weights, losses and frozen bits, and every step is logged once."""
    for training in (interrupted, whole):
        training.slurm.wait_for(training.job, "COMPLETED", timeout=200)
    found, expected = (weights(training.folder / "arms" / "safety") for training in (interrupted, whole))
    assert found == expected
    losses = [
        {
            row["global_step"]: row["loss"]
            for row in current(read_rows(training.folder / "metrics.jsonl"))
            if "loss" in row
        }
        for training in (interrupted, whole)
    ]
    assert list(losses[0]) == list(range(1, STEPS + 1))
    assert losses[0] == losses[1]
    arm, mask = interrupted.folder / "arms" / "safety", interrupted.folder / "selection" / "safety"
    assert verify(interrupted.model, arm, mask).ok


def test_a_signal_to_one_rank_saves_on_all_and_requeues_the_job(
    trainings: Callable[..., tuple[Training, Training]],
) -> None:
    interrupted, whole = trainings("ddp", "log 2")
    interrupted.until_step(2)
    interrupted.slurm.processes(interrupted.job)[1].send_signal(signal.SIGUSR1)
    interrupted.let_go()
    interrupted.slurm.wait_for(interrupted.job, "PENDING")
    # Not what it said of that: the last words of a step that is requeued may be lost.
    assert interrupted.complete == ["checkpoint-3"]
    interrupted.slurm.release(interrupted.job)
    same_result(interrupted, whole)
    assert interrupted.slurm.job(interrupted.job)["Restarts"] == "1"
    attempts = [row["attempt"] for row in read_rows(interrupted.folder / "metrics.jsonl") if "loss" in row]
    assert attempts == [1, 1, 1, 2]


def test_a_preempted_job_goes_on_when_the_nodes_are_free_again(
    trainings: Callable[..., tuple[Training, Training]],
) -> None:
    interrupted, whole = trainings("fsdp2", "log 2")
    interrupted.slurm.wait_for(whole.job, "COMPLETED", timeout=200)
    interrupted.until_step(2)
    urgent = interrupted.slurm.submit(
        "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"
    )
    time.sleep(0.5)
    interrupted.let_go()
    interrupted.slurm.wait_for(urgent, "COMPLETED")
    assert interrupted.complete == ["checkpoint-3"]
    interrupted.slurm.release(interrupted.job)
    same_result(interrupted, whole)
    assert interrupted.slurm.job(interrupted.job)["Restarts"] == "1"


def test_a_rank_killed_during_a_save_costs_the_steps_since_the_save_before(
    trainings: Callable[..., tuple[Training, Training]],
) -> None:
    interrupted, whole = trainings("zero2", "save 3", "training.save_steps=1")
    interrupted.until((interrupted.folder / "arms" / "safety.unfinished" / "checkpoint-3").is_dir)
    interrupted.slurm.processes(interrupted.job)[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    interrupted.slurm.wait_for(interrupted.job, "FAILED", timeout=60)
    assert time.monotonic() - killed < 60
    assert interrupted.complete == ["checkpoint-2"]
    interrupted.let_go()
    interrupted.job = interrupted.submit()
    same_result(interrupted, whole)
    output = interrupted.slurm.output(interrupted.slurm.job(interrupted.job))
    assert "checkpoint-3 is not a whole checkpoint (it has no complete.json: saving it was interrupted)" in output
    assert "going on from the checkpoint of step 2" in output
