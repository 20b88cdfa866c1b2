"""Asking Slurm to run this job again: one that ends after it was preempted counts as done and would never go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress

from neurofreeze.config.cluster import ClusterConfig
from neurofreeze.console import say
from neurofreeze.distributed import gather, rank
from neurofreeze.errors import RunError
from neurofreeze.launcher import slurm
from neurofreeze.training.stopping import Stopped

_HEAD_START = 2.0  # of rank 0, seconds


def leave(cluster: ClusterConfig, stopped: Stopped) -> None:
    """What ranks still do once a signal has stopped them: the job is requeued if `cluster.requeue` asks for it.

    The first rank that ends takes the job with it. So where all ranks have agreed to stop, the others wait for rank 0.
    Where they have not, as rank 0 may be waiting for one of them in vain, each requeues, rank 0 first.
    """
    # Ctrl-C comes from a person, who wants the job to end.
    wanted = cluster.name == "slurm" and cluster.requeue and stopped.number != signal.SIGINT
    job = _job_id(os.environ) if wanted else None
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


def _job_id(environment: Mapping[str, str]) -> str | None:
    # The last task of an array has the array's own number as its SLURM_JOB_ID, which stands for all tasks.
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")
