"""Where a job went when it was submitted: kept in job.json, so that anyone with the folder can look and cancel.

The work of a process that was asked for it itself is in working.json, and only while it is done.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from neurofreeze.errors import RunError
from neurofreeze.files import write_atomically
from neurofreeze.launcher.job import FILE

WORKING = "working.json"


@dataclass(frozen=True)
class Record:
    """A Slurm job, or a process of a machine.

    Attributes:
        job_id: Slurm's, of an array's job such as 12_3; None for a process.
        pid: of the process, or of torchrun; None for a Slurm job.
        host: where the process is.
        started: when it began, in seconds since 1970: what another process with the same pid later on would not share.
    """

    job_id: str | None = None
    pid: int | None = None
    host: str | None = None
    started: float | None = None

    @classmethod
    def of_process(cls, pid: int) -> Record:
        """A process of this machine that has just been started."""
        return cls(pid=pid, host=socket.gethostname(), started=psutil.Process(pid).create_time())

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The process that is at work in a run folder, else what `write` left; None if there is neither.

        Raises:
            RunError: if job.json is damaged.
        """
        if (working := _working(folder)) is not None:
            return working
        try:
            content = json.loads((folder / FILE).read_text(encoding="utf-8"))
            found = content.get("submitted")
            return None if found is None else cls(**found)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError) as error:
            raise RunError(f"{folder / FILE} is damaged ({error}); submit the job again") from error

    def write(self, folder: Path) -> None:
        """Add this to the job.json of a saved job."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        content["submitted"] = {key: value for key, value in asdict(self).items() if value is not None}
        write_atomically(folder / FILE, (json.dumps(content, indent=1) + "\n").encode())

    @property
    def name(self) -> str:
        """As a person would call it."""
        return f"process {self.pid}" if self.job_id is None else f"job {self.job_id}"

    @property
    def elsewhere(self) -> bool:
        """Whether it is a process of another machine, which cannot be looked at from here."""
        return self.job_id is None and self.host != socket.gethostname()

    @property
    def process(self) -> psutil.Process | None:
        """The process, if it still runs and is on this machine."""
        if self.pid is None or self.started is None or self.elsewhere:
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def require_here(self) -> psutil.Process | None:
        """The process, if it still runs.

        Raises:
            RunError: if it is on another machine.
        """
        if self.elsewhere:
            raise RunError(f"the job is process {self.pid} of {self.host}, not of this machine; run this there")
        return self.process


@contextmanager
def noted(folder: Path) -> Iterator[None]:
    """Within the block, this process is on record in the folder: a second one would write to the same files.

    Raises:
        RunError: if another one has begun at the same moment.
    """
    path = folder / WORKING
    path.unlink(missing_ok=True)  # of one that was killed: whoever calls has looked
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(asdict(Record.of_process(os.getpid())), file)
    except FileExistsError as error:
        raise RunError(f"another command has begun in {folder} at the same moment; wait for it") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _working(folder: Path) -> Record | None:
    try:
        found = Record(**json.loads((folder / WORKING).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # or just being written
        return None
    return found if found.elsewhere or found.process is not None else None
