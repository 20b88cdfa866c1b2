"""Answers in the shape of OpenAI's chat completions, with what the guard decided in a field of its own."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from neurofreeze.serving.jobs import Failed, Finished, Job, Piece, Reply


@dataclass(frozen=True)
class Shape:
    """What all parts of one response share.

    Attributes:
        model: its name, for callers.
        job: what was asked.
        events: tell the caller what the guard measured, not only that the answer was blocked.
        usage: end a stream with the counts of tokens.
        created: seconds since 1970.
    """

    model: str
    job: Job
    events: bool
    usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, end: Finished) -> dict[str, Any]:
        """A chat.completion."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage(end), **self._guard(end)}

    async def lines(self, replies: AsyncIterator[Reply]) -> AsyncIterator[str]:
        """Server-sent events: chat.completion.chunk objects and [DONE], or an error in their place."""
        yield self._chunk({"role": "assistant", "content": ""})
        async for reply in replies:
            if isinstance(reply, Piece):
                yield self._chunk({"content": reply.text})
            elif isinstance(reply, Failed):
                yield _line(reply.error.content)
                return
            else:
                yield self._chunk({}, reply.reason, self._guard(reply))
                if self.usage:
                    head = self._head("chat.completion.chunk")
                    yield _line({**head, "choices": [], "usage": self._usage(reply)})
                yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.job.id}", "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, more: dict[str, Any] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _line({**self._head("chat.completion.chunk"), "choices": [choice], **(more or {})})

    def _usage(self, end: Finished) -> dict[str, int]:
        prompt = len(self.job.prompt)
        return {"prompt_tokens": prompt, "completion_tokens": end.tokens, "total_tokens": prompt + end.tokens}

    def _guard(self, end: Finished) -> dict[str, Any]:
        if not self.events:
            return {}
        return {"neurofreeze": {"events": end.events, "monitor": end.monitor}}


class EventStream(StreamingResponse):
    """Server-sent events; `release` is called when the response has ended, however it does.

    A generator's own `finally` would wait for the garbage collector where the client has left.
    """

    def __init__(self, lines: AsyncIterator[str], release: Callable[[], None]) -> None:
        # Proxies such as nginx would hold a stream back.
        super().__init__(lines, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()


def event_line(found: dict[str, Any] | None) -> str:
    """One event of a feed; a comment where there is none."""
    return ": alive\n\n" if found is None else _line(found)


def _line(found: dict[str, Any]) -> str:
    return f"data: {json.dumps(found, ensure_ascii=False, allow_nan=False)}\n\n"
