"""What settings are for: the comments beside a config dataclass's fields, which are its only description."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any


def described(schema: type[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a config dataclass that has a value of its own, dotted, and its comment ("" if it has none)."""
    comments = _comments(schema)
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        factory: Any = field.default_factory
        if is_dataclass(factory):
            yield from described(factory, f"{key}.")  # type: ignore[arg-type]
        else:
            yield key, comments.get(field.name, "")


def _comments(schema: type[Any]) -> dict[str, str]:
    """By field: the comment lines right above it, and the comment that ends one of its own lines."""
    found: dict[str, str] = {}
    for base in reversed([kind for kind in schema.__mro__ if is_dataclass(kind)]):
        source = textwrap.dedent(inspect.getsource(base))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        beside = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
        alone = {line for line, token in beside.items() if not token.line[: token.start[1]].strip()}
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first = node.lineno
                while first - 1 in alone:
                    first -= 1
                lines = [line for line in range(first, (node.end_lineno or node.lineno) + 1) if line in beside]
                found[node.target.id] = " ".join(beside[line].string.lstrip("# ") for line in lines)
    return found
