"""Checks that triggers share when they are loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from neurofreeze.data.examples import Example
from neurofreeze.errors import GuardError


def require_settings(name: str, settings: Mapping[str, Any], *expected: str) -> None:
    """Raise GuardError unless a trigger or reaction has exactly these settings."""
    if set(settings) != set(expected):
        raise GuardError(f"{name!r} has the settings {sorted(settings)}; expected {sorted(expected)}")


def require_shapes(name: str, tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> None:
    """Raise GuardError unless all tensors are finite float32 of this shape."""
    for field, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
            raise GuardError(
                f"trigger {name!r}: {field} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected "
                f"float32 of shape {shape}"
            )
        if not tensor.isfinite().all():
            raise GuardError(f"trigger {name!r}: {field} holds NaN or infinite values")


def is_number(found: object) -> bool:
    """Whether it is a finite number, not a text or a truth value that a setting was given by mistake."""
    return type(found) in (int, float) and math.isfinite(found)  # type: ignore[arg-type]


def keys(*sets: Sequence[Example]) -> tuple[str, ...]:
    """The prompts of several sets by key, sorted, each once."""
    return tuple(sorted({example.key for examples in sets for example in examples}))
