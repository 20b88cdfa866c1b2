"""Gradient hooks that run before everybody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def before_others(parameter: torch.nn.Parameter, hook: Callable[[torch.Tensor], None]) -> Any:
    """Register a post-accumulate gradient hook that runs before those already there; returns its handle.

    DeepSpeed's own hook takes the gradient away to reduce it, so one that masks must come first. torch runs hooks in
    the order of this dict and has no public way to put one in front.
    """
    handle = parameter.register_post_accumulate_grad_hook(hook)
    hooks: Any = parameter._post_accumulate_grad_hooks
    others = [(key, hooks.pop(key)) for key in list(hooks) if key != handle.id]
    hooks.update(others)
    return handle
