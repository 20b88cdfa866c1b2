"""Frozen elements while optimizers step: copied before, put back after, and after a step that was broken off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from neurofreeze.engines.base import Shard
from neurofreeze.pieces import Piece


class Steps:
    """The steps of a model's optimizers, one of which may call another's, of its base class, say.

    Args:
        weights: what is frozen.

    Attributes:
        saved: id of a piece -> its values while a step runs, where no low-precision copy of the model holds them.
    """

    def __init__(self, weights: Sequence[Piece[Shard]]) -> None:
        self.saved: dict[int, torch.Tensor] = {}
        self._weights = weights
        self._within = 0

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Before a step."""
        self._within += 1
        for piece in self._of(optimizer):
            if id(piece) in self.saved:
                # Within another step, or after one that was broken off, it may have moved already.
                piece.write(piece.of.master(), self.saved[id(piece)])
            elif piece.of.low_precision() is None:
                self.saved[id(piece)] = piece.read(piece.of.master())

    def end(self, optimizer: torch.optim.Optimizer) -> None:
        """After a step: weight decay has moved weights whose gradient is zero, and may have reached their moments."""
        self._within -= 1
        coupled = _decay_enters_moments(optimizer)
        for piece in self._of(optimizer):
            self._put_back(piece)
            if coupled:
                for moment in piece.of.moments():
                    piece.zero(moment)
        if self._within == 0:
            self.saved.clear()

    def undo(self) -> None:
        """Put back what a step moved that was broken off."""
        for piece in self._weights:
            self._put_back(piece)
        self.forget()

    def forget(self) -> None:
        """Take weights as they are now."""
        self.saved.clear()
        self._within = 0

    def _of(self, optimizer: torch.optim.Optimizer) -> Iterator[Piece[Shard]]:
        # DeepSpeed steps one flat group at a time; the others are not in the optimizer's groups meanwhile.
        stepping = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return (piece for piece in self._weights if id(piece.of.owner) in stepping)

    def _put_back(self, piece: Piece[Shard]) -> None:
        if id(piece) in self.saved:
            piece.write(piece.of.master(), self.saved[id(piece)])
        restore_master(piece)


def restore_master(piece: Piece[Shard]) -> None:
    """Make an optimizer's master agree with the model's low-precision copy, if there is one."""
    low_precision = piece.of.low_precision()
    if low_precision is not None:
        piece.write(piece.of.master(), piece.read(low_precision))


def _decay_enters_moments(optimizer: torch.optim.Optimizer) -> bool:
    # Coupled weight decay (SGD, Adam, RMSprop ...) is added to the gradient and so reaches the moments; decoupled
    # decay (AdamW) does not. An optimizer that does not say is taken to be coupled.
    return any(
        group.get("weight_decay", 0) and not group.get("decoupled_weight_decay", False)
        for group in optimizer.param_groups
    )
