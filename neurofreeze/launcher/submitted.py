"""Submitted: a job that was started, found again by its run folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from neurofreeze.errors import RunError
from neurofreeze.launcher import slurm
from neurofreeze.launcher.record import Record
from neurofreeze.launcher.state import Status, exit_code, status

_PATIENCE = 600.0  # seconds in which Slurm may fail to answer while a job is waited for


@dataclass(frozen=True)
class Submitted:
    """A job in the background: a Slurm job, or a process of this machine.

    Attributes:
        folder: of its run.
    """

    folder: Path

    @property
    def name(self) -> str:
        """Such as `job 12_3` or `process 123`."""
        record = Record.read(self.folder)
        return "no job" if record is None else record.name

    def status(self) -> Status:
        """How it goes, from Slurm and from what the run has written."""
        return status(self.folder)

    def wait(self, poll_seconds: float = 5.0) -> int:
        """Wait until it has ended; returns the exit code.

        A job that is requeued goes on, and is waited for.

        Args:
            poll_seconds: between two looks. `sbatch --wait` would look every few minutes only.

        Raises:
            RunError: if Slurm has not answered for ten minutes, or the job left no trace of its end.
        """
        answered = time.monotonic()
        while True:
            try:
                if (code := exit_code(self.folder)) is not None:
                    return code
                answered = time.monotonic()
            except RunError:
                if time.monotonic() - answered > _PATIENCE:
                    raise
            time.sleep(poll_seconds)

    def cancel(self) -> bool:
        """End it; returns whether there was anything to end. A training that is signalled saves first.

        Raises:
            RunError: if Slurm does not answer, or the process is on another machine.
        """
        record = Record.read(self.folder)
        if record is None:
            return False
        if record.job_id is not None:
            job = slurm.squeue([record.job_id]).get(record.job_id)
            if job is None or not job.active:
                return False
            slurm.scancel([record.job_id])
            return True
        if (process := record.require_here()) is None:
            return False
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            return False
        return True
