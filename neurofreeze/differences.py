"""What differs between two sets of settings, in words for an error."""

from __future__ import annotations

from typing import Any


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    """Every setting that is not the same in both, by its dotted name; empty if there is none."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := difference(a, b, f"{prefix}{key}."):
                found.append(inner)
        elif a != b:
            found.append(f"{prefix}{key} was {a!r}, is {b!r}")
    return "; ".join(found)
