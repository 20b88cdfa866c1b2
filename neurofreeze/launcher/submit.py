"""The one way from a job to where it runs."""

from __future__ import annotations

from pathlib import Path

from neurofreeze.console import say
from neurofreeze.errors import RunError
from neurofreeze.launcher import processes, slurm
from neurofreeze.launcher.job import Job
from neurofreeze.launcher.record import WORKING, Record, noted
from neurofreeze.launcher.script import FILE, LOGS, render
from neurofreeze.launcher.state import RESULT, exit_code
from neurofreeze.launcher.submitted import Submitted


def submit(job: Job) -> int:
    """Run a job where its settings say; returns the exit code, 0 for a Slurm job that is not waited for.

    A job of this process writes its settings into the folder when it is done, so that a refused one leaves the folder
    as it was. Any other writes them before it starts, for its ranks.

    Raises:
        RunError: if Slurm is not there or refuses the job, or the folder has a job that has not ended.
    """
    cluster = job.config.cluster
    if cluster.name == "local":
        from neurofreeze.launcher.work import work

        require_ended(job.folder)
        with noted(job.folder):
            code = work(job)
            job.save()
        return code
    if cluster.name == "torchrun":
        prepare(job)
        return processes.run(job)
    if cluster.dry_run:
        print(render(job.command, job.config, job.folder), end="")
        return 0
    submitted = start(job)
    say(f"{submitted.name} in {job.folder}; how it goes: neurofreeze status {job.folder}")
    return submitted.wait(cluster.poll_seconds) if cluster.wait else 0


def start(job: Job) -> Submitted:
    """Start a job in the background: as a Slurm job, or as a process of this machine that writes to a log.

    Raises:
        RunError: if Slurm is not there or refuses the job, or the folder has a job that has not ended.
    """
    if job.config.cluster.name == "slurm":
        slurm.require()
        text = render(job.command, job.config, job.folder)
        prepare(job)
        Record(job_id=slurm.sbatch(write_script(job.folder, text))).write(job.folder)
    else:
        prepare(job)
        processes.start(job, job.folder / processes.LOG)
    return Submitted(job.folder)


def prepare(job: Job) -> None:
    """Write what the ranks read.

    Raises:
        RunError: if the folder has a job that has not ended: two would write to the same files.
    """
    require_ended(job.folder)
    for name in (RESULT, WORKING):
        (job.folder / name).unlink(missing_ok=True)  # of an attempt before this one
    (job.folder / LOGS).mkdir(parents=True, exist_ok=True)
    job.save()


def require_ended(folder: Path) -> None:
    """Raise RunError if the folder has a job that has not ended: it would find the settings of another command."""
    record = Record.read(folder)
    if record is not None and exit_code(folder) is None:
        raise RunError(
            f"{folder} has {record.name}, which has not ended; wait for it, or `neurofreeze cancel {folder}`"
        )


def write_script(folder: Path, text: str) -> Path:
    """Put a batch script into the folder it is for; returns its path."""
    path = folder / FILE
    path.write_text(text, encoding="utf-8")
    return path
