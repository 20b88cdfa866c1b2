"""Asking Slurm to run this job again: one that ends after it was preempted counts as done and would never go on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping

from neurofreeze.config.cluster import ClusterConfig
from neurofreeze.console import say
from neurofreeze.training.stopping import Stopped

_PATIENCE = 60.0  # seconds until Slurm has ended this rank
_HEAD_START = 5.0  # seconds
_TIMEOUT = 30.0  # of a call of scontrol, seconds


def requeue(cluster: ClusterConfig, stopped: Stopped) -> None:
    """Requeue the Slurm job that a signal has stopped, if `cluster.requeue` asks for it.

    Rank 0 does it, and the others wait for their end: a rank that leaves first takes the job with it. Where ranks did
    not agree to stop, rank 0 may be waiting for another one in vain, so after a while each of them does it.
    """
    if cluster.name != "slurm" or not cluster.requeue or "SLURM_JOB_ID" not in os.environ:
        return
    if stopped.number == signal.SIGINT:
        return  # from a person, who wants it to end
    first, agreed = os.environ.get("RANK", "0") == "0", stopped.step is not None
    if not first:
        time.sleep(_PATIENCE if agreed else _HEAD_START)
    if first or not agreed:
        _requeue(_job_id(os.environ))


def _requeue(job: str) -> None:
    # A job that was cancelled is ending, and would come back all the same.
    if (state := _state(job)) != "RUNNING":
        say(f"job {job} is {state}, not RUNNING, and is not requeued")
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode == 0:
        say(f"job {job} is requeued and goes on from here by itself")
    else:
        say(f"job {job} could not be requeued ({done.stderr.strip()}); submit it again, it goes on from here")


def _state(job: str) -> str:
    found = subprocess.run(
        ["squeue", "--noheader", f"--jobs={job}", "--format=%T"],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    return found.stdout.strip() or "unknown to Slurm"


def _job_id(environment: Mapping[str, str]) -> str:
    # The last task of an array has the array's own number as its SLURM_JOB_ID, which stands for all tasks.
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]
