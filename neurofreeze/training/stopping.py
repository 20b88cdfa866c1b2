"""Signals that ask a job to stop: training saves a checkpoint first, elsewhere they take effect at once.

SIGINT is Ctrl-C; SIGTERM is what a scheduler sends to a job that it preempts or cancels; SIGHUP is what a terminal that
is closed, or has lost its connection, leaves behind; SIGUSR1 is what a batch script asks for some time before the time
limit.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A signal has stopped the job where it can go on. No `except Exception` catches it, like KeyboardInterrupt.

    Args:
        number: of the signal.
        step: of the checkpoint that all ranks saved first; None if none was to be saved.
    """

    def __init__(self, number: int, step: int | None = None) -> None:
        how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        saved = "" if step is None else f"; saved at step {step}"
        super().__init__(f"{how}{saved}; the same command goes on from here")
        self.number = number
        self.step = step

    @property
    def code(self) -> int:
        """The exit code, as shells have it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP ..."""
        return 128 + self.number


class StopSignals:
    """Whether this process was asked to stop, and whether that must wait.

    Attributes:
        requested: number of the signal that came first, 0 if none did.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._deferring = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block, a signal raises Stopped. In a thread that is not the main one, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {number: signal.signal(number, self._on_signal) for number in heeded()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block, a signal is only noted; unless the block acts on it, Stopped is raised at its end."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested:
            raise Stopped(self.requested)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        first, self.requested = not self.requested, self.requested or number
        # Whoever presses Ctrl-C twice does not want to wait, nor for what swallows the first, as finalisers do. A
        # scheduler may repeat what it has said.
        again = not first and number == signal.SIGINT and _alone()
        if again or (first and not self._deferring):  # else it is on its way out
            raise Stopped(number)


def heeded() -> tuple[signal.Signals, ...]:
    """SIGNALS; under nohup without SIGHUP, which is ignored there and stays so."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in SIGNALS if not (ignored and number == signal.SIGHUP))


def _alone() -> bool:
    """Whether this is a process that a person started, not a rank among others nor a batch job."""
    return os.environ.get("WORLD_SIZE", "1") == "1" and "SLURM_JOB_ID" not in os.environ
