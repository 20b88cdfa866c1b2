"""Leaving after a signal: which jobs are requeued, by which rank, under which id."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neurofreeze.config.cluster import ClusterConfig
from neurofreeze.errors import RunError
from neurofreeze.launcher import requeue, slurm
from neurofreeze.launcher.requeue import kept, leave
from neurofreeze.training.stopping import Stopped

CLUSTER = ClusterConfig(name="slurm")
SAVED, AT_ONCE = Stopped(signal.SIGTERM, 12), Stopped(signal.SIGUSR1)


class FakeSlurm:
    """Knows one job, and remembers what it was asked to requeue."""

    def __init__(self) -> None:
        self.state: str | None = "RUNNING"
        self.refuses = False
        self.requeued: list[str] = []

    def squeue(self, ids: list[str]) -> dict[str, slurm.SlurmJob]:
        return {} if self.state is None else {ids[0]: slurm.SlurmJob(self.state, 0, 0, "None")}

    def requeue(self, job: str) -> None:
        if self.refuses:
            raise RunError("scontrol failed: Access/permission denied")
        self.requeued.append(job)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    found = FakeSlurm()
    monkeypatch.setattr(slurm, "squeue", found.squeue)
    monkeypatch.setattr(slurm, "requeue", found.requeue)
    monkeypatch.setattr(requeue, "_HEAD_START", 0.01)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize("stopped", [SAVED, AT_ONCE])
def test_a_job_that_a_signal_has_stopped_is_requeued(
    stopped: Stopped, fake: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(CLUSTER, stopped)
    assert fake.requeued == ["12"]
    assert "job 12 is requeued and goes on from here by itself" in capsys.readouterr().out


@pytest.mark.parametrize(("stopped", "requeued"), [(SAVED, []), (AT_ONCE, ["12"])])
def test_another_rank_requeues_only_where_rank_0_may_not_come_to_it(
    stopped: Stopped, requeued: list[str], fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    leave(CLUSTER, stopped)
    assert fake.requeued == requeued


def test_the_last_job_of_an_array_does_not_requeue_all_of_it(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    leave(CLUSTER, SAVED)
    assert fake.requeued == ["12_3"]


@pytest.mark.parametrize(
    ("cluster", "stopped"),
    [
        (replace(CLUSTER, requeue=False), SAVED),
        (ClusterConfig(), SAVED),  # by hand within an allocation, which is not the job's
        (CLUSTER, Stopped(signal.SIGINT, 12)),
    ],
)
def test_other_jobs_are_not(cluster: Any, stopped: Stopped, fake: FakeSlurm) -> None:
    leave(cluster, stopped)
    assert not fake.requeued


@pytest.mark.parametrize(
    ("stopped", "restarts", "progress", "requeued"),
    [
        (AT_ONCE, "1", False, []),
        (AT_ONCE, "1", True, ["12"]),
        (AT_ONCE, None, False, ["12"]),  # the first time something else may have taken its time
        (Stopped(signal.SIGTERM), "1", False, ["12"]),  # preempted early
        (Stopped(signal.SIGUSR1, 3), "1", False, ["12"]),
    ],
)
def test_a_job_that_comes_no_further_is_not_requeued_for_ever(
    stopped: Stopped,
    restarts: str | None,
    progress: bool,
    requeued: list[str],
    fake: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if restarts is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    leave(CLUSTER, stopped, progress)
    assert fake.requeued == requeued
    assert ("give it more with cluster.time" in capsys.readouterr().out) == (not requeued)


def test_stages_batches_and_checkpoints_are_progress_and_logs_are_not(tmp_path: Path) -> None:
    seen = [kept(tmp_path)]
    for name in (
        "stages/select.json",
        "selection/unfinished/rank-0.safetensors",
        "arms/none.unfinished/checkpoint-1/complete.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
        seen.append(kept(tmp_path))
    assert [len(found) for found in seen] == [0, 1, 2, 3]
    os.utime(tmp_path / "selection/unfinished/rank-0.safetensors", ns=(0, 0))  # more batches in the same file
    assert kept(tmp_path) != seen[-1]
    before = kept(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "train-12.out").write_text("begins", encoding="utf-8")
    assert kept(tmp_path) == before


def test_a_job_submitted_from_another_takes_nothing_of_its_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would requeue a job of the array that it was submitted from, and its srun would allocate as there."""
    seen: dict[str, str] = {}

    def run(words: list[str], **options: Any) -> Any:
        seen.update(options["env"])
        return SimpleNamespace(returncode=0, stdout="13\n", stderr="")

    monkeypatch.setattr("neurofreeze.launcher.slurm.subprocess.run", run)
    theirs = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_MEM_PER_CPU": "99"}
    for name, value in {**theirs, "SLURM_CONF": "/etc/ours.conf", "SBATCH_PARTITION": "other"}.items():
        monkeypatch.setenv(name, value)
    assert slurm.sbatch(Path("job.sbatch")) == "13"
    assert seen["SLURM_CONF"] == "/etc/ours.conf"
    assert not {*theirs, "SBATCH_PARTITION"} & seen.keys()


def test_outside_slurm_nothing_is_asked(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    leave(CLUSTER, SAVED)
    assert not fake.requeued


@pytest.mark.parametrize(("state", "said"), [("COMPLETING", "is COMPLETING"), (None, "is unknown to Slurm")])
def test_a_cancelled_job_does_not_come_back(
    state: str | None, said: str, fake: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.state = state
    leave(CLUSTER, SAVED)
    assert not fake.requeued
    assert f"job 12 {said}, not RUNNING, and is not requeued" in capsys.readouterr().out


def test_a_refusal_is_told(fake: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    fake.refuses = True
    leave(CLUSTER, SAVED)
    assert "job 12 is not requeued (scontrol failed: Access/permission denied); submit it" in capsys.readouterr().out
