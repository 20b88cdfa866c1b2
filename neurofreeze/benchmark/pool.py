"""Worker processes that train cells side by side: one a GPU, or on shares of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path

from neurofreeze.benchmark.cell import Cell

_PATIENCE = 10.0  # seconds for a worker to end by itself
Done = Callable[[Cell, "str | None"], None]


def work_off(cells: Sequence[Cell], jobs: int | None, threads: int | None, logs: Path, done: Done) -> None:
    """Run every cell in one of several processes, in their order; no process outlives the call.

    Args:
        cells: to be run.
        jobs: processes; None for one a GPU, without any one a core.
        threads: of each; None for its share of the cores.
        logs: folder of what they print, worker-N.log.
        done: called after each cell with its error, None if it is complete.
    """
    gpus, cores = _gpus(), len(os.sched_getaffinity(0))
    count = min(jobs or gpus or cores, len(cells))
    threads = threads or max(1, cores // max(1, count))
    waiting = deque(cells)
    workers = [_Worker(number, threads, number % gpus if gpus else None, logs) for number in range(count)]
    try:
        for worker in workers:
            worker.give(waiting.popleft())
        while busy := {worker.connection: worker for worker in workers if worker.cell is not None}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                cell, error = worker.take()
                done(cell, error)
                if waiting:
                    worker.give(waiting.popleft())
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    def __init__(self, number: int, threads: int, gpu: int | None, logs: Path) -> None:
        self.log = logs / f"worker-{number}.log"
        self.threads = threads
        self.gpu = gpu
        self.cell: Cell | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA, nor torch's threads
        self.connection, other = context.Pipe()
        # A daemon, so that Python itself ends it where `stop` is not reached.
        self.process = context.Process(target=_work, args=(other, self.log, self.threads), daemon=True)
        with _environment(self.threads, self.gpu):
            self.process.start()
        other.close()

    def give(self, cell: Cell) -> None:
        if not self.process.is_alive():
            self._start()
        self.cell = cell
        self.connection.send(cell)

    def take(self) -> tuple[Cell, str | None]:
        """The cell that is done, and its error."""
        cell, self.cell = self.cell, None
        assert cell is not None
        try:
            error: str | None = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            error = f"its process ended with exit code {self.process.exitcode}; {self.log} may say why"
        return cell, error

    def stop(self) -> None:
        self.connection.close()
        if self.cell is not None:
            self.process.terminate()
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(connection: Connection, log: Path, threads: int) -> None:
    """A worker's life: cells come in, errors go out, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the suite, which ends its workers
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as it does; this cleans up after imports
    _end_with_parent()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    from neurofreeze.console import quiet, quiet_transformers, say

    quiet()
    import torch

    torch.set_num_threads(threads)
    quiet_transformers()
    while True:
        try:
            cell: Cell = connection.recv()
        except (EOFError, ConnectionError):
            return
        say(f"=== {cell.place}")
        error = None
        try:
            cell.run()
        except Exception as caught:
            traceback.print_exc()
            error = f"{type(caught).__name__}: {caught}"
        connection.send(error)


def _end_with_parent() -> None:
    """End this process once its parent has gone, however that was killed: nothing else would stop a cell."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _environment(threads: int, gpu: int | None) -> Iterator[None]:
    """What a process that is started within the block finds in its environment."""
    given = {"OMP_NUM_THREADS": str(threads)} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": _visible(gpu)})
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _visible(gpu: int) -> str:
    """A GPU as the driver counts it, where this process sees only some."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return seen.split(",")[gpu] if seen else str(gpu)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
