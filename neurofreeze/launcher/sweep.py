"""Running the jobs of a sweep: one job array on Slurm, one process after another on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurofreeze.console import say
from neurofreeze.errors import ConfigError, RunError
from neurofreeze.files import write_atomically
from neurofreeze.launcher import processes, slurm
from neurofreeze.launcher.folders import SWEEP
from neurofreeze.launcher.job import FILE, Job
from neurofreeze.launcher.record import Record
from neurofreeze.launcher.script import render
from neurofreeze.launcher.submit import prepare, require_ended, write_script
from neurofreeze.launcher.submitted import Submitted
from neurofreeze.training.stopping import SIGNALS, Stopped

# What may differ when a sweep goes on in its folder.
_ELSEWHERE = ("cluster", "backend", "tracker", "monitor", "overwrite", "objective")


def run(jobs: Sequence[Job], folder: Path, *, optimises: bool) -> Sequence[float | Exception | None]:
    """Start the jobs and, if they are waited for, return what each came to.

    Args:
        jobs: their settings are checked; their folders are those of their numbers in `folder`, consecutive.
        folder: of the sweep.
        optimises: whether whoever asks needs each job's objective, and so waits.

    Returns:
        For each job its objective, or the error it ended with; None where nothing is optimised or waited for.

    Raises:
        ConfigError: if the jobs cannot be one sweep, before any is started.
        RunError: if jobs failed and nothing is optimised.
    """
    cluster = jobs[0].config.cluster
    _require_one_sweep(jobs, optimises)
    if cluster.name == "slurm":
        numbers = [int(job.folder.name) for job in jobs]
        text = render(jobs[0].command, jobs[0].config, folder, numbers)
        if cluster.dry_run:
            print(text, end="")
            return [None] * len(jobs)
        slurm.require()
    _require_free(jobs)
    _list(jobs, folder)
    if cluster.name == "slurm":
        codes = _array(jobs, folder, text, wait=cluster.wait or optimises)
    else:
        codes = [_here(job) for job in jobs]
    if optimises:
        return [_objective(job) for job in jobs]
    if failed := [job for job, code in zip(jobs, codes, strict=True) if code]:
        listed = ", ".join(str(job.folder) for job in failed)
        raise RunError(f"{len(failed)} of {len(jobs)} jobs failed: {listed}; `neurofreeze status {folder}` says more")
    return [None] * len(jobs)


def _require_one_sweep(jobs: Sequence[Job], optimises: bool) -> None:
    first = jobs[0].config
    if any(job.config.cluster != first.cluster for job in jobs):
        raise ConfigError("cluster differs between the jobs of the sweep; expected one for all, as they are one array")
    if first.cluster.name == "slurm" and len({job.config.backend.name == "plain" for job in jobs}) > 1:
        raise ConfigError("backend is plain for some jobs of the sweep only; sweep over it without the others")
    if optimises and first.objective is None:
        raise ConfigError("objective is None; expected what the sweep optimises, such as objective=safety.refusals")


def _require_free(jobs: Sequence[Job]) -> None:
    for job in jobs:
        require_ended(job.folder)  # of all, before what any has left gives way to another attempt
        if (job.folder / FILE).is_file() and not job.config.overwrite:
            before = Job.load(job.folder)
            if _essential(before.overrides) != _essential(job.overrides):
                raise ConfigError(
                    f"{job.folder} holds another sweep's job ({' '.join(before.overrides)}); "
                    "give this sweep a folder of its own with name=..., or redo it with overwrite=true"
                )


def _essential(overrides: Sequence[str]) -> set[str]:
    return {text for text in overrides if text.lstrip("+~").partition("=")[0].partition(".")[0] not in _ELSEWHERE}


def _list(jobs: Sequence[Job], folder: Path, job_id: str | None = None) -> None:
    """Write sweep.json, with the jobs of batches before."""
    here = [{"folder": job.folder.name, "overrides": job.overrides} for job in jobs]
    if job_id is not None:
        here = [{**listed, "job_id": f"{job_id}_{listed['folder']}"} for listed in here]
    before: list[dict[str, Any]] = []
    if (folder / SWEEP).is_file() and int(jobs[0].folder.name) > 0:
        content = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
        before = [job for job in content["jobs"] if int(job["folder"]) < int(jobs[0].folder.name)]
    content = {"command": jobs[0].command, "name": jobs[0].config.name, "jobs": [*before, *here]}
    write_atomically(folder / SWEEP, (json.dumps(content, indent=1) + "\n").encode())


def _array(jobs: Sequence[Job], folder: Path, text: str, *, wait: bool) -> Sequence[int]:
    for job in jobs:
        prepare(job)
    job_id = slurm.sbatch(write_script(folder, text))
    for job in jobs:
        Record(job_id=f"{job_id}_{job.folder.name}").write(job.folder)
    _list(jobs, folder, job_id)
    say(f"job {job_id}, an array of {len(jobs)}, in {folder}; how it goes: neurofreeze status {folder}")
    if not wait:
        return [0] * len(jobs)
    return [Submitted(job.folder).wait(job.config.cluster.poll_seconds) for job in jobs]


def _here(job: Job) -> int:
    # A process each: its memory is free afterwards, and if it crashes the next one still runs.
    prepare(job)
    say(f"{job.folder}: {' '.join(job.overrides)}")
    received: list[int] = []
    code = processes.run(job, job.folder / processes.LOG, received)
    say(f"{job.folder}: {'complete' if code == 0 else f'failed with exit code {code}, see {processes.LOG} in it'}")
    # Ctrl-C is meant for the sweep, not for one job after another; so is `neurofreeze cancel`, which signals a job.
    number = received[0] if received else code - 128
    if number in SIGNALS:
        raise Stopped(number)
    return code


def _objective(job: Job) -> float | Exception:
    from neurofreeze.tracking.result import objective, read_result

    try:
        result = read_result(job.folder)
        if result is None:
            raise RunError(f"{job.folder} has no result.json: its job was ended before it could write one")
        return objective(result, str(job.config.objective))
    except RunError as error:
        return error
