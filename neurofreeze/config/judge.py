"""Who judges answers to harmful requests: evaluation.judge."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional
from urllib.parse import urlsplit

from neurofreeze.config.checks import check

JUDGES = ("phrases", "guard", "harmbench", "classifier", "endpoint")
WITHOUT_WEIGHTS = ("phrases", "endpoint")  # need no room beside the model whose answers they judge
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass
class EndpointConfig:
    """An OpenAI-compatible server: POST <url>/chat/completions."""

    KEY: ClassVar[str] = "evaluation.judge.endpoint"  # where it is in the settings, for messages
    url: Optional[str] = None  # https://api.example.com/v1
    key_variable: Optional[str] = None  # the NAME of the environment variable that holds the key, in capitals
    timeout: float = 60.0  # seconds for one reply
    retries: int = 4  # after a timeout, a lost connection, 429 or 5xx; waits 1, 2, 4 ... seconds, or as long as told
    parallel: int = 4  # requests at a time
    options: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 8})

    def __post_init__(self) -> None:
        check(self.timeout > 0, f"{self.KEY}.timeout", self.timeout, "a number above 0")
        check(self.retries >= 0, f"{self.KEY}.retries", self.retries, "a number not below 0")
        check(self.parallel > 0, f"{self.KEY}.parallel", self.parallel, "a positive number")
        taken = sorted({"model", "messages", "stream"} & self.options.keys())
        check(not taken, f"{self.KEY}.options", taken, "options other than model, messages, stream")
        # A key in place of a name must not get into a message either.
        named = self.key_variable is None or re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key_variable) is not None
        check(named, f"{self.KEY}.key_variable", "...", "the name of a variable in capitals, not a key")
        if self.url is not None:
            readable = _readable(self.url)
            url = urlsplit(self.url if readable else "")
            plain = url.scheme in ("http", "https") and bool(url.hostname) and not (url.query or url.fragment)
            # Not in the message: what is before the @ is a secret.
            check(
                "@" not in (url.netloc if readable else self.url),
                f"{self.KEY}.url",
                "...@...",
                "no user and password; use key_variable=",
            )
            check(plain, f"{self.KEY}.url", self.url, "an http or https address without ? and #")
            safe = self.key_variable is None or url.scheme == "https" or url.hostname in _LOOPBACK
            check(safe, f"{self.KEY}.url", self.url, "https, since a key is sent")


def _readable(url: str) -> bool:
    """Whether an address has parts, and a port that is a number if any."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


@dataclass
class JudgeConfig:
    """A phrase list (evaluation.phrases), or a model, which reads longer answers."""

    KEY: ClassVar[str] = "evaluation.judge"  # where it is in the settings, for messages
    name: str = "phrases"
    model: Optional[str] = None  # a folder, a hub id, or the endpoint's name for it
    revision: Optional[str] = None
    prompt: Optional[str] = None  # harmbench: a text file with {behavior} and {generation}, from the model's card
    unsafe: list[str] = field(default_factory=list)  # classifier: the labels that mean unsafe
    pair: bool = True  # classifier: reads the request and the answer; false: the answer only
    tokens: int = 256  # of each answer, for judges other than phrases
    batch_size: int = 8
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)

    def __post_init__(self) -> None:
        check(self.name in JUDGES, f"{self.KEY}.name", self.name, f"one of {', '.join(JUDGES)}")
        for name in ("tokens", "batch_size"):
            check(getattr(self, name) > 0, f"{self.KEY}.{name}", getattr(self, name), "a positive number")
        needs = {
            "model": (self.model, self.name != "phrases"),
            "prompt": (self.prompt, self.name == "harmbench"),
            "unsafe": (self.unsafe, self.name == "classifier"),
            "endpoint.url": (self.endpoint.url, self.name == "endpoint"),
        }
        for key, (found, needed) in needs.items():
            check(bool(found) or not needed, f"{self.KEY}.{key}", found, f"a value, since judge.name={self.name}")
