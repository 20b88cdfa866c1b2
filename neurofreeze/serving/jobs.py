"""A request on its way to the model, and what comes back of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from uuid import uuid4

from neurofreeze.serving.errors import ApiError

COLDEST = 0.01  # temperatures below it are greedy: logits divided by less overflow


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; jobs of equal settings can be answered together.

    Attributes:
        temperature: 0 for the likeliest token.
        top_p: the smallest set of tokens of this probability.
        seed: of the draws. A job with one is answered alone, or its draws would depend on others.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature < COLDEST

    @property
    def key(self) -> tuple[float, float] | None:
        """Equal where jobs can share a batch; None of a job that cannot."""
        if self.greedy:
            return (0.0, 1.0)
        return (self.temperature, self.top_p) if self.seed is None else None


@dataclass(frozen=True)
class Piece:
    """Text that follows what came before."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The answer is whole.

    Attributes:
        reason: OpenAI's finish_reason; "content_filter" if a guard blocked the answer.
        tokens: of the answer, the one that ends it included.
        events: what gates and filters decided (`Event.as_json` without the row).
        monitor: what the monitor found in the prompt, `Verdict.row`; None without a monitor.
    """

    reason: Literal["stop", "length", "content_filter"]
    tokens: int
    events: list[dict[str, Any]]
    monitor: dict[str, Any] | None


@dataclass(frozen=True)
class Failed:
    """There will be no more of the answer."""

    error: ApiError


Reply: TypeAlias = "Piece | Finished | Failed"


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        prompt: its token ids.
        request: as text, for filters.
        sampling: see there.
        limit: most tokens of the answer.
        stop: texts that end the answer.
        deadline: of `time.monotonic`, after which nobody waits for it.
        send: takes replies, from another thread; Finished or Failed is the last.
        id: names it in events.
        cancelled: nobody waits for it.
        begun: some of the answer has been sent.
        monitor: what the monitor found in the prompt, once it has read it: a job that is answered again counts once.
    """

    prompt: list[int]
    request: str
    sampling: Sampling
    limit: int
    send: Callable[[Reply], None]
    stop: tuple[str, ...] = ()
    deadline: float = float("inf")
    id: str = field(default_factory=lambda: uuid4().hex[:16])
    cancelled: bool = False
    begun: bool = False
    monitor: dict[str, Any] | None = None

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return time.monotonic() >= self.deadline
