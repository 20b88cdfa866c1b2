"""Requests that wait for the model, and which of them are answered together."""

from __future__ import annotations

import threading
import time

from neurofreeze.serving.errors import ApiError, closing
from neurofreeze.serving.jobs import Job


class BatchQueue:
    """First come, first served; those of equal sampling settings join the first, a few at a time.

    Args:
        most: jobs that may wait.
        size: jobs of a batch.
        wait: seconds that the first of a batch waits for others.
        context: tokens that the longest prompt and the longest answer of a batch may have together, since its rows are
            padded to the one and go on to the end of the other; None: any number.
    """

    def __init__(self, most: int, size: int, wait: float, context: int | None = None) -> None:
        self._most, self._size, self._wait, self._context = most, size, wait, context
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """Jobs that wait."""
        return sum(not job.cancelled for job in self._jobs)

    def put(self, job: Job) -> None:
        """Let a job wait.

        Raises:
            ApiError: 429 if too many wait, 503 once the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise closing()
            self._jobs = [waiting for waiting in self._jobs if not waiting.cancelled]
            if len(self._jobs) >= self._most:
                raise ApiError(
                    429, "too many requests are waiting; try again later", "queue_full", headers={"Retry-After": "1"}
                )
            self._jobs.append(job)
            self._changed.notify_all()

    def take(self) -> list[Job]:
        """The next batch, as soon as there is one; empty once the queue is closed."""
        with self._changed:
            while not self._closed:
                self._changed.wait_for(lambda: self._closed or len(self) > 0)
                until = time.monotonic() + self._wait
                while not self._closed and len(self._batch()) < self._size:
                    if not self._changed.wait(max(0.0, until - time.monotonic())):
                        break
                # Those that began to wait may all have been cancelled since.
                if batch := self._batch():
                    self._jobs = [job for job in self._jobs if job not in batch and not job.cancelled]
                    return batch
            return []

    def close(self) -> list[Job]:
        """Let nobody in any more; the jobs that wait, which are not taken any more."""
        with self._changed:
            self._closed = True
            left, self._jobs = self._jobs, []
            self._changed.notify_all()
            return left

    def _batch(self) -> list[Job]:
        waiting = [job for job in self._jobs if not job.cancelled]
        if not waiting:
            return []
        batch, key = waiting[:1], waiting[0].sampling.key
        for job in waiting[1:] if key is not None else ():
            if len(batch) < self._size and job.sampling.key == key and self._fit([*batch, job]):
                batch.append(job)
        return batch

    def _fit(self, jobs: list[Job]) -> bool:
        longest = max(len(job.prompt) for job in jobs) + max(job.limit for job in jobs)
        return self._context is None or longest <= self._context
