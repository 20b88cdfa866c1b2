"""The routes: `/v1/chat/completions`, `/v1/models`, `/health`, `/metrics`, and the live page with its events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from neurofreeze._version import __version__
from neurofreeze.serving.access import Access
from neurofreeze.serving.errors import ApiError, failed, on_api_error, on_http_error
from neurofreeze.serving.jobs import Finished, Reply
from neurofreeze.serving.limits import read_body
from neurofreeze.serving.page import page
from neurofreeze.serving.replies import Replies, unless_gone
from neurofreeze.serving.responses import EventStream, Shape, event_line
from neurofreeze.serving.schemas import parse
from neurofreeze.serving.service import Service

_GONE = 499  # the client left; nobody reads it


def create_app(service: Service) -> ASGIApp:
    """The ASGI application of a service, which it starts and closes."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await run_in_threadpool(service.close)

    # No generated pages: they would load scripts from elsewhere, and what is offered is OpenAI's.
    app = FastAPI(title="NeuroFreeze", version=__version__, lifespan=lifespan, openapi_url=None)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, lambda request, error: failed().response)
    known = [Depends(service.auth)]

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the model's thread is there; open to anyone, and says no more."""
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/metrics", dependencies=known)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", dependencies=known)
    async def models() -> dict[str, Any]:
        """The one model."""
        model = {"id": service.name, "object": "model", "created": service.created, "owned_by": "neurofreeze"}
        return {"object": "list", "data": [model]}

    @app.get("/")
    async def live() -> HTMLResponse:
        """The page, which holds nothing: what it shows it fetches, with the token."""
        return page(service.name)

    @app.get("/events", dependencies=known)
    async def events() -> Response:
        """Guard and monitor events: the last ones, then each as it happens."""
        service.watchers.hold()
        return EventStream(_lines(service), service.watchers.release)

    @app.post("/v1/chat/completions", dependencies=known)
    async def complete(request: Request) -> Response:
        """OpenAI's chat completion."""
        asked = parse(await read_body(request, service.limits.body_bytes))
        replies = Replies()
        job = await run_in_threadpool(service.prepare, asked, replies.send, request.state.request)
        seconds = service.limits.timeout
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        shape = Shape(service.name, job, service.config.events, usage)
        if asked.stream:
            return _streamed(service, shape, replies, seconds)
        service.queue.put(job)
        found = await unless_gone(request.receive, replies.whole(job, seconds))
        if found is None:
            return Response(status_code=_GONE)
        text, end = found
        service.metrics.tokens(len(job.prompt), end.tokens)
        return JSONResponse(shape.whole(text, end))

    return Access(app, service.metrics)


def _streamed(service: Service, shape: Shape, replies: Replies, seconds: float) -> Response:
    service.streams.hold()
    try:
        service.queue.put(shape.job)
    except ApiError:
        service.streams.release()
        raise

    def release() -> None:
        shape.job.cancelled = True
        service.streams.release()

    async def counted() -> AsyncIterator[Reply]:
        async for reply in replies.of(shape.job, seconds):
            if isinstance(reply, Finished):
                service.metrics.tokens(len(shape.job.prompt), reply.tokens)
            yield reply

    return EventStream(shape.lines(counted()), release)


async def _lines(service: Service) -> AsyncIterator[str]:
    yield event_line(None)  # so that the reader knows at once that it is let in
    async for found in service.feed.read():
        yield event_line(found)
