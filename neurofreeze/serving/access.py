"""Around the whole application: one line and one count a request, and no error that gets past it."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neurofreeze.serving.errors import failed, log, log_failure
from neurofreeze.serving.metrics import ServerMetrics


class Access:
    """Logs the method, the route, the status and the time: no path that is not ours, no query, no header, no body.

    Args:
        app: what it is around.
        metrics: counts requests.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, name = time.monotonic(), 0, uuid4().hex[:16]
        scope["state"] = {**scope.get("state", {}), "request": name}

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                headers["x-content-type-options"] = "nosniff"
                headers["cache-control"] = "no-store"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            log.warning("%s was cut off, since the server stops", name)
        except Exception as error:
            log_failure(error)
            if not status:
                await failed().response(scope, receive, watched)
        finally:
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(route, status, seconds)
            log.info("%s %s %s %d %.3f s", name, scope["method"], route, status, seconds)
