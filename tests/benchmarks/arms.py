"""What is compared: no freezing (twice), the freezer, the common recipe; each in turn attached to the same engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from neurofreeze import Freezer, NeuronMask, freeze
from neurofreeze.neurons import canonical_name
from neurofreeze.pieces import Piece
from tests.benchmarks.engines import Kind, Training


@dataclass(frozen=True)
class Arm:
    """ "off" and "again" freeze nothing, "frozen" is the freezer, "recipe" a dense bool mask in a gradient hook."""

    kind: str
    fraction: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.kind} {self.fraction:g}" if self.fraction else self.kind


@dataclass
class Attached:
    """One arm while it is attached.

    `engine` is the name the freezer gave it, `held` the bytes it holds between steps on this rank, `copied` those it
    adds for a moment within a step, `hook_calls` how often the recipe's hooks have run.
    """

    engine: str = ""
    held: int = 0
    copied: int = 0
    hook_calls: int = 0
    _handles: list[Any] = field(default_factory=list)


def arms(fractions: list[float], recipe: bool = True) -> list[Arm]:
    kinds = ("frozen", "recipe") if recipe else ("frozen",)
    return [Arm("off"), Arm("again"), *(Arm(kind, fraction) for fraction in fractions for kind in kinds)]


@contextmanager
def attach(
    arm: Arm, kind: Kind, training: Training, mask: NeuronMask | None, weigh: bool = False
) -> Iterator[Attached]:
    """Train as this arm does within the block; on leaving it the freezer checks that every frozen bit is in place.

    Args:
        weigh: also find `held`, `copied` and `hook_calls`, which takes time in every step.
    """
    if mask is None:
        yield Attached()
    elif arm.kind == "frozen":
        yield from _frozen(kind, training, mask, weigh)
    else:
        yield from _recipe(training, mask, weigh)


def _frozen(kind: Kind, training: Training, mask: NeuronMask, weigh: bool) -> Iterator[Attached]:
    freezer = freeze(training.model, training.optimizer, mask)
    if freezer.engine.name not in kind.names:
        raise RuntimeError(f"the freezer sees {freezer.engine.name!r}, expected one of {kind.names}")
    attached = Attached(freezer.engine.name)
    if weigh:
        _weigh(freezer, attached)
    yield attached
    for handle in attached._handles:
        handle.remove()
    freezer.detach()


def _weigh(freezer: Freezer, attached: Attached) -> None:
    lists: tuple[list[Piece[Any]], ...] = (freezer._weights, freezer._gradients, freezer._gradients_at_step)
    indices = {piece.index.data_ptr(): piece.index for pieces in lists for piece in pieces}
    attached.held = sum(_bytes(index) for index in indices.values())
    # Where the engine has low-precision copies nothing is saved, but pieces are read one at a time.
    attached.copied = max((_bytes(piece.read(piece.of.master())) for piece in freezer._weights), default=0)

    def watch(*_: Any) -> None:
        attached.copied = max(attached.copied, sum(_bytes(values) for values in freezer.steps.saved.values()))

    attached._handles = [optimizer.register_step_pre_hook(watch) for optimizer in freezer.engine.optimizers()]


def _recipe(training: Training, mask: NeuronMask, weigh: bool) -> Iterator[Attached]:
    attached = Attached()
    parameters: dict[str, Any] = {canonical_name(name): p for name, p in training.module.named_parameters()}
    for name, chosen in mask.dense(training.module).items():
        keep = (~chosen).to(parameters[name].device)
        hook = _counted(keep, attached) if weigh else _masking(keep)
        attached._handles.append(parameters[name].register_hook(hook))
        attached.held += _bytes(keep)
    yield attached
    for handle in attached._handles:
        handle.remove()


def _masking(keep: torch.Tensor) -> Any:
    return lambda gradient: gradient * keep


def _counted(keep: torch.Tensor, attached: Attached) -> Any:
    def hook(gradient: torch.Tensor) -> torch.Tensor:
        attached.hook_calls += 1
        masked = gradient * keep
        attached.copied = max(attached.copied, _bytes(masked))
        return masked

    return hook


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
