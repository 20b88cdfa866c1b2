"""How a job goes: its state from Slurm or its process, its numbers from the files of its run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from omegaconf import OmegaConf

from neurofreeze.errors import RunError
from neurofreeze.launcher import slurm
from neurofreeze.launcher.job import FILE, SETTINGS
from neurofreeze.launcher.record import Record
from neurofreeze.stages.rows import current, read_rows

RESULT, METRICS = "result.json", "metrics.jsonl"
_SLURM = {"COMPLETED": "complete", "PENDING": "waiting", "REQUEUED": "requeued"}  # where not just in lower case


@dataclass(frozen=True)
class Status:
    """What `neurofreeze status` shows of one job.

    Attributes:
        folder: of its run.
        job: such as `job 12_3` or `process 123`; None for one of the process that was asked for it.
        state: waiting, running, complete, failed, cancelled, or another of Slurm's states; interrupted, if a job left
            no result; unfinished, if it has none yet and may still run in the process that was asked for it.
        reason: why it waits or failed, as far as known.
        arm: in training, or trained last.
        step: of the arm, counted in optimizer steps.
        steps: that it will have; None if that is not known before.
        loss: of training, mean per token in nats.
        frozen: whether the last check found every frozen bit the same; None if there was none.
        refusal_rate: of the last look at probe prompts, in [0, 1].
        restarts: how often the job was requeued.
    """

    folder: Path
    job: str | None
    state: str
    reason: str = ""
    arm: str | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    frozen: bool | None = None
    refusal_rate: float | None = None
    restarts: int = 0


def status(folder: Path, known: Mapping[str, slurm.SlurmJob] | None = None) -> Status:
    """How the job of a run folder goes.

    Args:
        folder: of the run.
        known: what Slurm has already been asked about many jobs at once.

    Raises:
        RunError: if a file of the folder is damaged, or Slurm does not answer.
    """
    record = Record.read(folder)
    job = _slurm_job(record, known)
    state, reason = _state(folder, record, job)
    return Status(
        folder,
        job=None if record is None else record.name,
        state=state,
        reason=reason,
        restarts=0 if job is None else job.restarts,
        **_numbers(folder),
    )


def statuses(folders: Sequence[Path]) -> list[Status]:
    """How the jobs of many run folders go; Slurm is asked once, and what it does not answer their files do.

    Raises:
        RunError: if a file of a folder is damaged.
    """
    records = [Record.read(folder) for folder in folders]
    ids = [record.job_id for record in records if record is not None and record.job_id is not None]
    try:
        known = slurm.squeue(ids) if slurm.available() else {}
    except RunError as error:
        found = [status(folder, {}) for folder in folders]
        return [_unknown(job, str(error)) if job.state == "interrupted" else job for job in found]
    return [status(folder, known) for folder in folders]


def _unknown(job: Status, why: str) -> Status:
    # It has left no result: it may run, wait, or have died.
    return replace(job, state="unknown", reason=why)


def exit_code(folder: Path) -> int | None:
    """The exit code of a submitted job; None while it runs or waits.

    Raises:
        RunError: if Slurm does not answer, or is not on this machine and the job has left no result.
    """
    record = Record.read(folder)
    job = _slurm_job(record, None)
    if job is not None:
        return None if job.active else job.exit_code
    if record is not None and record.process is not None:
        return None
    result = _result(folder)
    if result is None and _out_of_sight(record):
        raise RunError(
            f"{folder} has {record.name}, and no Slurm on this machine knows whether it has ended; run this where "
            f"Slurm is installed, or delete {folder / FILE} if it has"
        )
    return 1 if result is None else int(result["exit_code"])  # ended without a word


def _out_of_sight(record: Record | None) -> TypeGuard[Record]:
    return record is not None and record.job_id is not None and not slurm.available()


def _slurm_job(record: Record | None, known: Mapping[str, slurm.SlurmJob] | None) -> slurm.SlurmJob | None:
    if record is None or record.job_id is None:
        return None
    if known is None:
        known = slurm.squeue([record.job_id]) if slurm.available() else {}
    return known.get(record.job_id)


def _state(folder: Path, record: Record | None, job: slurm.SlurmJob | None) -> tuple[str, str]:
    result = _result(folder)
    error = "" if result is None else str(result.get("error", ""))
    if job is not None:
        reason = "" if job.reason == "None" or job.state == "COMPLETED" else job.reason
        return _SLURM.get(job.state, job.state.lower().replace("_", " ")), error or reason
    if record is not None and record.process is not None:
        return "running", ""
    if result is not None:
        return ("complete" if result["exit_code"] == 0 else "failed"), error
    if record is not None and record.elsewhere:
        return "unknown", f"it is a process of {record.host}; look there"
    if _out_of_sight(record):
        return "unknown", "it is a job of Slurm, which is not on this machine"
    if (folder / METRICS).is_file() or record is not None:
        # Without a record, it is or was the work of a process that nobody noted.
        return ("unfinished" if record is None else "interrupted"), ""
    return "not started", ""


def _result(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("exit_code"), int) else None


def _numbers(folder: Path) -> dict[str, Any]:
    rows = current(read_rows(folder / METRICS))
    training = [row for row in rows if row.get("stage") == "train"]
    last = training[-1] if training else {}
    of_arm = [row for row in rows if row.get("arm") == last.get("arm")]  # its checks and the monitor's rows too

    def latest(key: str) -> Any:
        return next((row[key] for row in reversed(of_arm) if key in row), None)

    return {
        "arm": last.get("arm"),
        "step": latest("global_step"),
        "steps": _steps(folder),
        "loss": latest("loss"),
        "frozen": latest("frozen_intact"),
        "refusal_rate": latest("refusal_rate"),
    }


def _steps(folder: Path) -> int | None:
    path = folder / SETTINGS
    return OmegaConf.select(OmegaConf.load(path), "training.steps") if path.is_file() else None
