"""What comes back of one job, from the model's thread into the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from neurofreeze.serving.errors import timed_out
from neurofreeze.serving.jobs import Failed, Finished, Job, Piece, Reply


class Replies:
    """A job's replies in their order."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Reply] = asyncio.Queue()

    def send(self, reply: Reply) -> None:
        """Called by the model's thread."""
        if not self._loop.is_closed():  # the server may have stopped meanwhile
            self._loop.call_soon_threadsafe(self._queue.put_nowait, reply)

    async def of(self, job: Job, seconds: float) -> AsyncIterator[Reply]:
        """Pieces and then the reply that ends them; whoever leaves early, or waits in vain, cancels the job.

        Args:
            job: whose replies these are.
            seconds: that there are for all of them.
        """
        until = self._loop.time() + seconds
        try:
            while True:
                try:
                    reply = await asyncio.wait_for(self._queue.get(), max(0.0, until - self._loop.time()))
                except asyncio.TimeoutError:
                    reply = Failed(timed_out(seconds))
                yield reply
                if not isinstance(reply, Piece):
                    return
        finally:
            job.cancelled = True

    async def whole(self, job: Job, seconds: float) -> tuple[str, Finished]:
        """The whole answer.

        Raises:
            ApiError: if there is none.
        """
        pieces: list[str] = []
        async for reply in self.of(job, seconds):
            if isinstance(reply, Failed):
                raise reply.error
            if isinstance(reply, Finished):
                return "".join(pieces), reply
            pieces.append(reply.text)
        raise AssertionError("the last reply is Finished or Failed")


async def unless_gone(receive: Callable[[], Awaitable[Any]], work: Awaitable[Any]) -> Any:
    """What `work` gives; None, and the work is cancelled, if the client leaves before."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for pending in (task, leaving):
            pending.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
