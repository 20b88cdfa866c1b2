"""What is asked of Slurm's own programs: sbatch, squeue, scancel."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from neurofreeze.errors import RunError

_TIMEOUT = 60.0  # seconds, of one call
_OF_CLIENTS = ("SLURM_CONF", "SLURM_JWT", "SLURM_SACK", "SLURM_CLUSTERS")  # how to reach Slurm
_FIELDS = "JobArrayID:40,State:24,exit_code:12,RestartCnt:12,Reason:80"
_NO_JOB = "67108863"  # above MaxJobId
# Everything else is a job that waits, runs, or will go on by itself.
_ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"),
    *("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "REVOKED"),
}


@dataclass(frozen=True)
class SlurmJob:
    """A job as Slurm knows it.

    Attributes:
        state: such as RUNNING.
        exit_code: 0 while it has not ended.
        restarts: how often it was requeued.
        reason: why it waits, or why it failed.
    """

    state: str
    exit_code: int
    restarts: int
    reason: str

    @property
    def active(self) -> bool:
        """Whether it runs, waits, or will go on by itself."""
        return self.state not in _ENDED


def available() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def require() -> None:
    """Raise RunError unless this machine can submit jobs."""
    if not available():
        raise RunError(
            "no sbatch on this machine; submit where Slurm is installed, or print the script with cluster.dry_run=true"
        )


def sbatch(script: Path) -> str:
    """Submit a script; returns the job's id.

    Raises:
        RunError: with what sbatch said, if it was refused.
    """
    return _call("sbatch", "--parsable", str(script)).partition(";")[0]  # id;cluster where there are several


def squeue(ids: Collection[str]) -> dict[str, SlurmJob]:
    """The jobs with these ids, such as 12 or 12_3, as far as Slurm still remembers them (some minutes after the end).

    Raises:
        RunError: if Slurm does not answer.
    """
    if not ids:
        return {}
    # One more: with a single id that it does not know, squeue fails.
    jobs = ",".join([*ids, _NO_JOB])
    words = ("squeue", "--noheader", "--array", "--states=all", f"--Format={_FIELDS}", f"--jobs={jobs}")
    found = {}
    for line in _call(*words).splitlines():
        number, state, code, restarts, *reason = line.split()
        found[number] = SlurmJob(state, _exit_code(state, int(code)), int(restarts), " ".join(reason))
    return found


def scancel(ids: Collection[str]) -> None:
    """Cancel jobs; those that have ended are left alone.

    Raises:
        RunError: if Slurm does not answer.
    """
    if ids:
        _call("scancel", *ids)


def requeue(job_id: str) -> None:
    """Put a running job back into the queue; its processes are killed.

    Raises:
        RunError: if Slurm does not answer or refuses.
    """
    _call("scontrol", "requeue", job_id)


def _exit_code(state: str, status: int) -> int:
    # `status` is what wait(2) reports, 0 too for a job that was cancelled or never ran.
    if state == "COMPLETED" or state not in _ENDED:
        return 0
    signal = status & 127
    return 128 + signal if signal else status >> 8 or 1


def _misleads(variable: str) -> bool:
    # Settings of sbatch that the script does not show; and those of a job that this one is submitted from, which it
    # would take for its own: the id of that job's array, or what that job's srun was to allocate.
    within = "SLURM_JOB_ID" in os.environ and variable.startswith("SLURM_")
    return variable.startswith("SBATCH_") or (within and not variable.startswith(_OF_CLIENTS))


def _call(*words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not _misleads(key)}
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise RunError(f"no {words[0]} on this machine; run this where Slurm is installed") from error
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{words[0]} did not answer within {_TIMEOUT:.0f} s; try again when Slurm is well") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()).removeprefix(f"{words[0]}: ")
        raise RunError(f"{words[0]} failed: {said or f'exit code {done.returncode}'}")
    return done.stdout.strip()
