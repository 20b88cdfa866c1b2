"""Jobs on this machine: one child process, or torchrun with the ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from neurofreeze.launcher.job import Job
from neurofreeze.launcher.record import Record
from neurofreeze.training.stopping import SIGNALS, heeded

LOG = "logs/local.log"  # of a child whose output is not for the terminal
_SAVING_SECONDS = 600  # in which ranks may save after a signal; torchrun then kills them


def command(job: Job) -> Sequence[str]:
    """The words that run a job's ranks on this machine."""
    cluster = job.config.cluster
    rank = ("-m", "neurofreeze.launcher.rank", str(job.folder))
    if job.config.backend.name == "plain":
        return (cluster.python or sys.executable, *rank)
    torchrun = (cluster.python or sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0")
    signals = f"--signals-to-handle={','.join(number.name for number in SIGNALS)}"
    wait = f"--shutdown-timeout={_SAVING_SECONDS}"
    return (*torchrun, f"--nproc-per-node={cluster.ranks_per_node}", signals, wait, *rank)


def start(job: Job, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a saved job and record its process in its folder.

    Args:
        job: to run.
        log: where its output is added; None for this process's own output.
    """
    threads = job.config.cluster.cpus_per_rank
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    # In a session of its own, a terminal's Ctrl-C reaches it once, from here, and not every rank beside that.
    options: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL, "start_new_session": True}
    if log is None:
        process = subprocess.Popen(command(job), **options)
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(command(job), stdout=file, stderr=subprocess.STDOUT, **options)
    Record.of_process(process.pid).write(job.folder)
    return process


def run(job: Job, log: Path | None = None, received: list[int] | None = None) -> int:
    """Run a saved job to its end, handing it the signals that come from now on; returns the exit code.

    That is 128 + N after signal N, whatever torchrun makes of it. The signals are added to `received`.
    """
    received = [] if received is None else received
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # that came while it was being started, and must not leave it behind

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        if process is None:
            early.append(number)
        elif process.poll() is None:
            process.send_signal(number)

    with _handling(forward):
        process = start(job, log)
        for number in early:
            process.send_signal(number)
        code = process.wait()
    if code < 0:
        return 128 - code
    return 128 + received[0] if received and code else code


@contextmanager
def _handling(forward: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before: dict[int, Any] = {number: signal.signal(number, forward) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
