"""`python -m neurofreeze.launcher.rank FOLDER`: one rank of a job, with RANK, WORLD_SIZE ... in its environment.

It reads the job from its folder; no Hydra runs in it, so that all ranks have the same settings and folder.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from neurofreeze.cli import guarded
from neurofreeze.console import quiet
from neurofreeze.errors import ConfigError, OtherRankError, RunError
from neurofreeze.launcher.job import Job
from neurofreeze.launcher.record import Record
from neurofreeze.launcher.state import RESULT
from neurofreeze.training.stopping import Stopped

_HEAD_START = 5.0  # seconds
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo's words


def main() -> int:
    """Run the job's command as this rank; returns the exit code, as of `neurofreeze COMMAND`."""
    quiet()
    return guarded(_work, "run")


def _work() -> int:
    job = Job.load(Path(sys.argv[1]))
    _note(job)
    try:
        return _work_on(job)
    except Exception as error:
        from neurofreeze.tracking.result import write_failure

        write_failure(job.folder, job.command, error)
        raise


def _note(job: Job) -> None:
    # A batch script that was submitted again by hand is another job than the one on record: it could not be looked at
    # or cancelled, and would not keep a second one from starting beside it.
    from neurofreeze.launcher.requeue import job_id  # after `quiet`, as below

    number = job_id(os.environ) if job.config.cluster.name == "slurm" else None
    if number is None or os.environ.get("RANK", "0") != "0":
        return
    record = Record.read(job.folder)
    if record is None or record.job_id != number:
        (job.folder / RESULT).unlink(missing_ok=True)  # of the job before
        Record(job_id=number).write(job.folder)


def _work_on(job: Job) -> int:
    from neurofreeze.launcher.work import work  # after `quiet`: it brings libraries that talk

    try:
        return work(job)
    except OtherRankError:
        return _after_rank_0(1)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            raise
        return stopped.code
    except ConfigError:
        if os.environ.get("RANK", "0") == "0":
            raise
        return _after_rank_0(2)  # the settings are every rank's: one says what is wrong with them
    except RuntimeError as error:
        if any(words in str(error) for words in _LOST):
            raise RunError(f"rank {os.environ.get('RANK', '0')} has lost another rank, which has failed") from error
        raise


def _after_rank_0(code: int) -> int:
    # Launchers end all ranks once one has ended, and rank 0 must not be ended before it has said why.
    time.sleep(_HEAD_START)
    return code


def entry() -> NoReturn:
    """Run the job's command as this process."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's shutdown, which may wait for threads of the process group: those of a rank that
    # failed would wait for ranks that wait for this one.
    os._exit(code)


if __name__ == "__main__":
    entry()
