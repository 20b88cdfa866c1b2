"""Where the stages of a method that teaches refusals are: the module of this package with the method's name."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from neurofreeze.stages.context import Run


class Stages(Protocol):
    """What such a module has."""

    def select(self, run: Run) -> None:
        """Choose neurons, and leave the mask of what must not change at selection/<the method's own arm>."""
        ...

    def train(self, run: Run, arm: str) -> None:
        """Train one arm into arms/<arm>."""
        ...


def evaluate(run: Run, name: str) -> None:
    """What the method measures of the start or an arm besides, if its module has an `evaluate` of its own."""
    own = getattr(stages(run), "evaluate", None)
    if own is not None:
        own(run, name)


def stages(run: Run) -> Stages:
    """The stages of the run's method."""
    return cast(Stages, import_module(f"neurofreeze.stages.{run.config.method.name}"))
