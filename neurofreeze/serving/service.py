"""All that a server is made of, but for HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING

from neurofreeze.config.serve import ServeConfig
from neurofreeze.guard.chain import Chain
from neurofreeze.guard.events import Event
from neurofreeze.serving.auth import Auth
from neurofreeze.serving.engine import Engine
from neurofreeze.serving.errors import ApiError
from neurofreeze.serving.feed import Feed
from neurofreeze.serving.jobs import Job, Reply, Sampling
from neurofreeze.serving.limits import Places
from neurofreeze.serving.metrics import ServerMetrics
from neurofreeze.serving.prompts import Prompts, request_text
from neurofreeze.serving.queue import BatchQueue
from neurofreeze.serving.schemas import ChatRequest
from neurofreeze.serving.worker import Worker

if TYPE_CHECKING:
    from neurofreeze.guard.monitor import Monitor, Verdict


class Service:
    """A guarded model, its queue and its worker, and who may use them how much.

    Args:
        config: the settings.
        chain: the model with its gates and filters.
        monitor: of its prompts.

    Attributes:
        name: of the model, for callers.
        created: when the service was made, in seconds since 1970.
    """

    def __init__(self, config: ServeConfig, chain: Chain, monitor: Monitor | None = None) -> None:
        limits, batching = config.limits, config.batching
        self.config, self.limits = config, limits
        self.name = config.name or PurePath(config.model).name
        self.created = int(time.time())
        self.prompts = Prompts(chain.tokenizer)
        self.auth = Auth(config.token_env)
        self.engine = Engine(chain, monitor, self)
        self.queue = BatchQueue(limits.waiting, batching.size, batching.wait_ms / 1000, self.engine.context)
        self.streams = Places(limits.streams, "streams")
        self.watchers = Places(limits.watchers, "readers of events")
        self.metrics = ServerMetrics(lambda: len(self.queue), lambda: self.streams.held)
        self.feed = Feed()
        self.worker = Worker(self.engine, self.queue, self.metrics.batch)
        if monitor is not None:
            from neurofreeze.guard.monitor import Metrics

            Metrics(monitor, self.metrics.registry)

    def prepare(self, asked: ChatRequest, send: Callable[[Reply], None], name: str) -> Job:
        """The job of a request.

        Raises:
            ApiError: 404 if it is for another model, 400 if it is longer than the limits.
        """
        if asked.model != self.name:
            raise ApiError(404, f"there is no such model; this server has {self.name}", "model_not_found", "model")
        limits, deadline = self.limits, time.monotonic() + self.limits.timeout
        prompt = self.prompts.ids(asked.messages)
        if len(prompt) > limits.prompt_tokens:
            raise _too_long(f"the prompt has {len(prompt)} tokens; expected at most {limits.prompt_tokens}")
        given = asked.max_completion_tokens or asked.max_tokens
        if given is not None and given > limits.max_tokens:
            param = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
            raise ApiError(400, f"{param} is {given}; expected at most {limits.max_tokens}", "invalid_value", param)
        room = (self.engine.context or len(prompt) + limits.max_tokens) - len(prompt)
        if room < (given or 1):
            raise _too_long(
                f"the prompt has {len(prompt)} tokens, which leaves {max(room, 0)} of the model's {self.engine.context}"
            )
        sampling = Sampling(
            1.0 if asked.temperature is None else asked.temperature,
            1.0 if asked.top_p is None else asked.top_p,
            asked.seed,
        )
        return Job(
            prompt=prompt,
            request=request_text(asked.messages),
            sampling=sampling,
            limit=given or min(limits.default_tokens, room),
            send=send,
            stop=tuple(asked.stop or ()),
            deadline=deadline,
            id=name,
        )

    def on_event(self, job: Job, event: Event) -> None:
        """A gate or a filter has decided."""
        self.metrics.event(event)
        self.feed.event(job, event)

    def on_verdict(self, job: Job, verdict: Verdict) -> None:
        """The monitor has seen a prompt."""
        self.feed.verdict(job, verdict)

    def close(self) -> None:
        """Stop the worker, and leave the model as it was."""
        self.feed.close()
        self.worker.stop(self.limits.grace)
        self.engine.close()


def _too_long(message: str) -> ApiError:
    return ApiError(400, message, "context_length_exceeded", "messages")
