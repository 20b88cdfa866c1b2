"""Asking Slurm to run this job again: one that ends after it was preempted counts as done and would never go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from neurofreeze.config.cluster import ClusterConfig
from neurofreeze.console import say
from neurofreeze.distributed import gather, rank
from neurofreeze.errors import RunError
from neurofreeze.launcher import slurm
from neurofreeze.training.stopping import Stopped

_HEAD_START = 2.0  # of rank 0, seconds
# What a job goes on from.
_KEPT = (
    "stages/*.json",
    "stages/*.unfinished/*.jsonl",
    "selection/**/*.safetensors",
    "*.unfinished/*/complete.json",
    "arms/*.unfinished/*/complete.json",
)


def kept(folder: Path) -> set[tuple[str, int]]:
    """What a job in this run folder would go on from, with when it was written: whether that changes is progress."""
    found = set()
    for path in (path for pattern in _KEPT for path in folder.glob(pattern)):
        with suppress(FileNotFoundError):  # meanwhile
            found.add((str(path), path.stat().st_mtime_ns))
    return found


def leave(cluster: ClusterConfig, stopped: Stopped, progress: bool = True) -> None:
    """What ranks still do once a signal has stopped them: the job is requeued if `cluster.requeue` asks for it.

    The first rank that ends takes the job with it. So where all ranks have agreed to stop, the others wait for rank 0.
    Where they have not, as rank 0 may be waiting for one of them in vain, each requeues, rank 0 first. A job that was
    requeued before and has since come to its time limit without `progress` would do so for ever, and is not.
    """
    # Ctrl-C comes from a person, who wants the job to end.
    wanted = cluster.name == "slurm" and cluster.requeue and stopped.number != signal.SIGINT
    job = job_id(os.environ) if wanted else None
    if job is not None and stopped.step is None and not progress and _again(stopped):
        if rank() == 0:
            say(
                f"job {job} has come no further in all of its time, and is not requeued; give it more with cluster.time"
            )
        return
    if stopped.step is not None:
        if job is not None and rank() == 0:
            _requeue(job)
        with suppress(RuntimeError):  # of a rank that Slurm has ended meanwhile
            gather(None)
    elif job is not None:
        if rank() != 0:
            time.sleep(_HEAD_START)
        _requeue(job)


def _requeue(job: str) -> None:
    try:
        found = slurm.squeue([job]).get(job)
        # One that was cancelled is ending, and would come back all the same.
        if found is None or found.state != "RUNNING":
            if rank() == 0:  # else rank 0 has requeued it, or says why not
                say(f"job {job} is {found.state if found else 'unknown to Slurm'}, not RUNNING, and is not requeued")
            return
        slurm.requeue(job)
    except RunError as error:
        say(f"job {job} is not requeued ({error}); submit it again, it goes on from here")
        return
    say(f"job {job} is requeued and goes on from here by itself")


def _again(stopped: Stopped) -> bool:
    # A job that is preempted cannot help it.
    return stopped.number == signal.SIGUSR1 and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def job_id(environment: Mapping[str, str]) -> str | None:
    """Of the Slurm job that this process is part of, as squeue writes it; None outside Slurm."""
    # The last task of an array has the array's own number as its SLURM_JOB_ID, which stands for all tasks.
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")
