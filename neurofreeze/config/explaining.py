"""What Hydra and OmegaConf found wrong with a setting, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any


def explain(error: Exception, schema: type[Any]) -> str:
    """What was found, what was expected and what to do, of settings that have the dataclass `schema`."""
    message, cause = (" ".join(str(found or "").split()) for found in (error, error.__cause__))
    if unknown := re.search(r"Key '([^']+)' (?:is )?not in|Could not override '([^']+)'", f"{message} {cause}"):
        key = unknown[1] or unknown[2]
        names = dict(_settings(schema))
        if names.get(key.rpartition(".")[0], "").startswith("dict"):
            return f"{key} is not set, so that it cannot be changed; pass +{key}=... to add it"
        # Beside it, in the deepest part of the settings that there is.
        within = key.rpartition(".")[0]
        while within and not any(name.startswith(f"{within}.") for name in names):
            within = within.rpartition(".")[0]
        prefix = f"{within}." if within else ""
        beside = ", ".join(name for name in names if name.startswith(prefix) and "." not in name[len(prefix) :])
        return f"unknown setting {key!r}{suggest(key, names)}; expected one of {beside} or a key below them"
    if absent := re.search(r"Could not find '(\w+)/([^']+)' Available options in '\w+': (.+?) Config search", message):
        group, name, options = absent.groups()
        return f"no {group} {name!r}{suggest(name, options.split())}; expected one of {', '.join(options.split())}"
    absent_value = r"(?:Missing mandatory value: \S+ full_key:|has missing mandatory value:) (\S+)"
    if missing := re.search(absent_value, f"{message} {cause}"):
        return f"{missing[1]} has no value, and none can be guessed; pass {missing[1]}=..."
    reason, found, rest = cause.partition(" full_key: ")
    if found:
        return f"{rest.split()[0]}: {reason}"
    override = getattr(error, "override", None)  # of a text that Hydra cannot parse
    return f"{override}: {message}" if override else message


def suggest(found: str, known: Iterable[str]) -> str:
    """The question whether one of `known` was meant that is close to what was found, "" if none is."""
    close = difflib.get_close_matches(found, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _settings(schema: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a config dataclass, dotted, and its type as it is written."""
    for field in fields(schema):
        yield f"{prefix}{field.name}", str(field.type)
        factory: Any = field.default_factory
        if is_dataclass(factory):
            yield from _settings(factory, f"{prefix}{field.name}.")
