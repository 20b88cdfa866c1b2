"""The one thread that the model runs in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from neurofreeze.errors import JudgeError
from neurofreeze.serving.engine import Engine
from neurofreeze.serving.errors import ApiError, closing, failed, log_failure
from neurofreeze.serving.jobs import Failed, Job
from neurofreeze.serving.queue import BatchQueue


class Worker:
    """Takes batches from a queue and has them answered, until it is stopped.

    Args:
        engine: answers.
        queue: of what waits.
        on_batch: called with the size of each batch.
    """

    def __init__(self, engine: Engine, queue: BatchQueue, on_batch: Callable[[int], None] = lambda _: None) -> None:
        self.engine, self.queue, self._on_batch = engine, queue, on_batch
        self._thread = threading.Thread(target=self._run, name="neurofreeze-model", daemon=True)
        self._running: Sequence[Job] = ()

    @property
    def alive(self) -> bool:
        """Whether it still takes batches."""
        return self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether a batch is being answered."""
        return bool(self._running)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Fail what waits, drop what is being answered, and end within about one step of the model."""
        for job in self.queue.close():
            job.send(Failed(closing()))
        for job in self._running:
            job.cancelled = True
        if self.alive:
            self._thread.join(timeout)

    def _run(self) -> None:
        while batch := self.queue.take():
            self._running = batch
            self._answer(batch)
            self._running = ()

    def _answer(self, batch: Sequence[Job]) -> None:
        self._on_batch(len(batch))
        try:
            self.engine.answer(batch)
        except Exception as error:
            log_failure(error)
            # What is wrong with one request, such as that it is too long for a filter, must not fail the others. Those
            # of which nothing has been told are answered again, each alone.
            alone = [job for job in batch if len(batch) > 1 and not (job.begun or job.cancelled or job.late)]
            for job in batch:
                if job not in alone:
                    job.send(Failed(_told(error)))
            for job in alone:
                self._answer([job])


def _told(error: Exception) -> ApiError:
    if isinstance(error, JudgeError):
        return ApiError(503, "a filter cannot be asked, so that no answer is given", "no_filter")
    return failed()
