"""Settings without their secrets, for every place that others may read: a tracker, a report.

A secret is what stands under a name such as hf_token or api_key, in the settings or in text (`NAME=value`); what has
the form of a known credential; what a URL carries for its user; and the value of any environment variable of such a
name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

REDACTED = "[redacted]"

_SECRET_WORDS = {
    "apikey", "auth", "authorization", "credential", "credentials", "key", "keys", "passphrase", "passwd", "password",
    "passwords", "secret", "secrets", "token", "tokens",
}  # fmt: skip
_COUNTABLE = {"key", "keys", "token", "tokens"}  # max_new_tokens=20 is no secret
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # of hf_token, HF_TOKEN, hfToken
_SHORTEST = 8  # an environment's secret of fewer characters could be any word of the settings

# Of the hub, OpenAI and Anthropic, GitHub, GitLab, AWS, Slack.
_FORMS = re.compile(
    r"\b(?:hf_\w{16,}|sk-[\w-]{16,}|gh[a-z]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|AKIA[0-9A-Z]{12,}|xox\w-[\w-]{8,})"
)
_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
_VALUE = r"""(?P<value>[^\s&;,"']+|"[^"]*"|'[^']*')"""
# NAME=value in a shell line or a query, name: value in a header or JSON.
_ASSIGNED = re.compile(rf"""(?P<name>[A-Za-z][\w.-]*)(?P<between>=|:\s+|["']\s*:\s*){_VALUE}""")
_OPTION = re.compile(rf"(?<=--)(?P<name>[\w-]+)(?P<between>\s+){_VALUE}")


def redact(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """A copy of settings, lists of them or text in which every secret is `[redacted]`.

    Args:
        value: plain containers, numbers and text.
        environment: whose secrets must not appear; None for this process's.
    """
    found = os.environ if environment is None else environment
    secrets = sorted(
        (text for name, text in found.items() if is_secret(name) and len(text) >= _SHORTEST), key=len, reverse=True
    )
    return _redact(value, secrets)


def redact_yaml(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Settings as YAML without their secrets; unchanged where there are none."""
    settings = OmegaConf.to_container(OmegaConf.create(text))
    clean = redact(settings, environment)
    return text if clean == settings else OmegaConf.to_yaml(OmegaConf.create(clean))


def is_secret(name: str) -> bool:
    """Whether text that is stored under this name is taken for a secret."""
    return bool(_words(name) & _SECRET_WORDS)


def _redact(value: Any, secrets: list[str], name: str = "") -> Any:
    """`name` is that of a secret under which the value stands, if it does."""
    if isinstance(value, Mapping):
        return {key: _redact(item, secrets, str(key) if is_secret(str(key)) else name) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact(item, secrets, name) for item in value]
    if name and value is not None and _is_hidden(name, str(value)):
        return REDACTED
    return _text(value, secrets) if isinstance(value, str) else value


def _text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    for pattern in (_FORMS, _IN_URL):
        text = pattern.sub(REDACTED, text)
    text = _HEADER.sub(rf"\1 {REDACTED}", text)
    return _OPTION.sub(_assigned, _ASSIGNED.sub(_assigned, text))


def _assigned(match: re.Match[str]) -> str:
    hidden = is_secret(match["name"]) and _is_hidden(match["name"], match["value"])
    return f"{match['name']}{match['between']}{REDACTED}" if hidden else match[0]


def _is_hidden(name: str, value: str) -> bool:
    counts = re.fullmatch(r"[-+\d.e]*|true|false|null", value.strip("\"'"), re.IGNORECASE) is not None
    return not counts or not _words(name) & _SECRET_WORDS <= _COUNTABLE


def _words(name: str) -> set[str]:
    return {word.lower() for word in _WORDS.findall(name)}
