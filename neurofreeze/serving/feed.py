"""What the guard decides, live: the last events, and readers that wait for the next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from neurofreeze.guard.events import Event
from neurofreeze.guard.monitor import Verdict
from neurofreeze.serving.jobs import Job

KEPT = 200  # events that a new reader sees
_BEHIND = 1000  # events that a slow reader may be behind before it loses some
_ALIVE = 15.0  # seconds between comments, by which a connection that is gone is noticed


class Feed:
    """Numbers and names, never a prompt or an answer. Told from the model's thread, read in the event loop."""

    def __init__(self) -> None:
        self.recent: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._readers: dict[asyncio.Queue[dict[str, Any] | None], asyncio.AbstractEventLoop] = {}
        self._closed = False

    def event(self, job: Job, event: Event) -> None:
        """A gate or a filter has decided."""
        found = event.as_json()
        del found["row"]
        self._tell({"kind": "guard", "request": job.id, **found})

    def verdict(self, job: Job, verdict: Verdict) -> None:
        """The monitor has seen a prompt."""
        self._tell({"kind": "monitor", "request": job.id, **verdict.row})

    async def read(self) -> AsyncIterator[dict[str, Any] | None]:
        """The last events and then each new one, until the feed is closed; None now and then, to show life."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_BEHIND)
        for before in list(self.recent):
            queue.put_nowait(before)
        self._readers[queue] = asyncio.get_running_loop()
        try:
            while not self._closed:
                try:
                    found = await asyncio.wait_for(queue.get(), _ALIVE)
                except asyncio.TimeoutError:
                    yield None
                    continue
                if found is not None:
                    yield found
        finally:
            del self._readers[queue]

    def close(self) -> None:
        """Send all readers away."""
        self._closed = True
        self._put(None)

    def _tell(self, found: dict[str, Any]) -> None:
        found = {"time": round(time.time(), 3), **found}
        self.recent.append(found)
        self._put(found)

    def _put(self, found: dict[str, Any] | None) -> None:
        for queue, loop in list(self._readers.items()):
            if not loop.is_closed():
                loop.call_soon_threadsafe(_put, queue, found)


def _put(queue: asyncio.Queue[dict[str, Any] | None], found: dict[str, Any] | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(found)
