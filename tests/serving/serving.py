"""A service in this process, and callers of it that need no network."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

import neurofreeze as nf
from neurofreeze.config.serve import BatchingConfig, LimitsConfig, ServeConfig
from neurofreeze.guard.chain import Chain
from neurofreeze.guard.filters import Filter
from neurofreeze.guard.reactions import Refuse
from neurofreeze.serving.app import create_app
from neurofreeze.serving.service import Service
from tests.guard.scripted import Scripted

PROMPTS = ("I lost my card", "what is the fee for a transfer", "open an account", "hello")


def config(**settings: Any) -> ServeConfig:
    """Settings of a server that answers at once."""
    limits = LimitsConfig(**settings.pop("limits", {}))
    batching = BatchingConfig(**settings.pop("batching", {}))
    return ServeConfig(model="models/tiny", limits=limits, batching=batching, **settings)


def refusing(model: Any, tokenizer: Any, *fires: tuple[int, int], steps: int | None = 4) -> nf.Gate:
    """A gate that refuses the answers at the (row, step) pairs."""
    return nf.Gate(model, tokenizer, Scripted(frozenset(fires)), Refuse("No."), steps=steps)


@contextmanager
def running(
    model: Any,
    tokenizer: Any,
    gates: Sequence[nf.Gate] = (),
    filters: Sequence[Filter] = (),
    monitor: Any = None,
    **settings: Any,
) -> Iterator[Caller]:
    """A service whose worker runs within the block."""
    service = Service(config(**settings), Chain(model, tokenizer, gates, filters), monitor)
    service.worker.start()
    try:
        yield Caller(service, create_app(service))
    finally:
        service.close()
    assert not service.worker.alive


@dataclass
class Caller:
    """Asks a service's application."""

    service: Service
    app: Any

    def many(self, work: Callable[[httpx.AsyncClient], Any]) -> Any:
        """What the coroutine of `work(client)` gives."""

        async def all_of_it() -> Any:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as client:
                return await work(client)

        return asyncio.run(all_of_it())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.many(lambda client: client.get(path, **more))

    def post(self, **more: Any) -> httpx.Response:
        return self.many(lambda client: client.post("/v1/chat/completions", **more))

    def ask(self, text: str = PROMPTS[0], **fields: Any) -> httpx.Response:
        return self.post(json=body(text, **fields))

    def together(self, bodies: Sequence[dict[str, Any]]) -> list[httpx.Response]:
        """All at once."""

        async def work(client: httpx.AsyncClient) -> Any:
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=found) for found in bodies))

        return self.many(work)

    def leave(self, fields: dict[str, Any], after: int) -> list[dict[str, Any]]:
        """Ask, and leave once that many messages of the response have come; the messages."""
        return asyncio.run(_leave(self.app, json.dumps(fields).encode(), after))


def body(text: str = PROMPTS[0], **fields: Any) -> dict[str, Any]:
    """A request for a greedy answer of 12 tokens."""
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 12,
        **fields,
    }


def text(response: httpx.Response) -> str:
    """The answer in a response, whole or streamed."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("application/json"):
        return response.json()["choices"][0]["message"]["content"]
    return "".join(choice["delta"].get("content", "") for chunk in chunks(response.text) for choice in chunk["choices"])


def chunks(stream: str) -> list[dict[str, Any]]:
    """The objects of a stream, which must end as OpenAI's do."""
    lines = stream.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for the model's thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


async def _leave(app: Any, content: bytes, after: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    gone, asked = asyncio.Event(), False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": content, "more_body": False}
        if after:
            await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)
        if len(messages) >= after:
            gone.set()
        await asyncio.sleep(0)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await asyncio.wait_for(app(scope, receive, send), 30)
    return messages
