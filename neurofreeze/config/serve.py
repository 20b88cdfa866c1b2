"""The settings of `neurofreeze serve` and `neurofreeze chat`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Optional

from omegaconf import MISSING

from neurofreeze.config.checks import check
from neurofreeze.config.guard import GuardConfig
from neurofreeze.config.monitor import DetectionConfig


@dataclass
class LimitsConfig:
    """What one caller may ask for, and all of them together; beyond it a request is refused at once."""

    body_bytes: int = 262_144  # of a request
    prompt_tokens: int = 4096  # after the chat template
    max_tokens: int = 1024  # of an answer
    default_tokens: int = 256  # of an answer, where a request does not say
    waiting: int = 64  # requests that are not being answered yet
    streams: int = 32  # answers streamed at a time
    watchers: int = 8  # readers of the live page
    connections: int = 256
    head: float = 15.0  # seconds that the head of a request may take, however slowly it comes
    timeout: float = 120.0  # seconds from a request to the end of its answer
    grace: float = 10.0  # seconds that answers may go on after SIGTERM

    def __post_init__(self) -> None:
        for name, found in vars(self).items():
            check(0 < found < math.inf, f"limits.{name}", found, "a positive number")
        known = f"at most limits.max_tokens, {self.max_tokens}"
        check(self.default_tokens <= self.max_tokens, "limits.default_tokens", self.default_tokens, known)


@dataclass
class BatchingConfig:
    """Waiting requests of equal sampling settings are answered together."""

    size: int = 8  # at most
    wait_ms: float = 5.0  # for others, after the first

    def __post_init__(self) -> None:
        check(self.size > 0, "batching.size", self.size, "a positive number")
        check(self.wait_ms >= 0, "batching.wait_ms", self.wait_ms, "a number of milliseconds not below 0")


@dataclass
class ServedConfig:
    """A model and what guards it."""

    model: str = MISSING
    revision: Optional[str] = None
    guard: GuardConfig = field(default_factory=GuardConfig)
    reference: Optional[str] = None  # of the monitor: a folder that `neurofreeze monitor` made
    detection: DetectionConfig = field(default_factory=DetectionConfig)


@dataclass
class ServeConfig(ServedConfig):
    """`neurofreeze serve`: an OpenAI-compatible endpoint."""

    name: Optional[str] = None  # of the model, for callers; null: the last part of `model`
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    token_env: Optional[str] = None  # NAME of the environment variable with the token that callers must show
    events: bool = True  # tell callers what the guard measured; operators see it either way
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)

    def __post_init__(self) -> None:
        check(0 <= self.port < 65536, "port", self.port, "a number from 0 to 65535")
        check(self.name is None or bool(self.name.strip()), "name", self.name, "some characters or null")
        if self.token_env is None:
            expected = "127.0.0.1, ::1 or localhost, since there is no token_env=NAME by which callers are known"
            check(is_loopback(self.host), "host", self.host, expected)
        else:
            # Never the value: it would be the token itself, if the two were confused.
            named = self.token_env.isidentifier() and len(os.environ.get(self.token_env, "").strip()) >= SHORTEST
            expected = f"the name of an environment variable that holds at least {SHORTEST} characters"
            check(named, "token_env", "no such name", expected)


SHORTEST = 16  # characters of a token


@dataclass
class ChatConfig(ServedConfig):
    """`neurofreeze chat`: a conversation in the terminal."""

    system: Optional[str] = None  # the system prompt
    max_tokens: int = 256  # of an answer
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0
    seed: Optional[int] = None

    def __post_init__(self) -> None:
        check(self.max_tokens > 0, "max_tokens", self.max_tokens, "a positive number")
        check(0 <= self.temperature <= 2, "temperature", self.temperature, "a number from 0 to 2")
        check(0 <= self.top_p <= 1, "top_p", self.top_p, "a number from 0 to 1")
        check(self.seed is None or 0 <= self.seed < 2**63, "seed", self.seed, "a number from 0 to 2**63 - 1 or null")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
