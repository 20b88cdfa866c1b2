"""Connections that must come to the point: uvicorn limits the time between requests, and not that of a head."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def prompt_connections(seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 as uvicorn has it, on connections that are closed after so many seconds with no request to answer.

    However slowly bytes come, a head must be whole within that time: of the first request from the connection's
    beginning, of a later one from its first byte. So must the rest of a body that was answered before it came. Between
    requests uvicorn's own, shorter limit holds (`timeout_keep_alive`).
    """

    class PromptConnection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._rest()

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:  # limits.timeout is for what is answered
                self._rest()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

        def _rest(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return PromptConnection
