"""What an objective is, and in which order its rows come."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple, Protocol

import torch


class Row(NamedTuple):
    """Token ids of a conversation, and where its answer begins; `example` is its number among the objective's."""

    example: int
    ids: list[int]
    start: int


class Terms(Protocol):
    """An objective made ready for a model."""

    @property
    def name(self) -> str:
        """Under which its mean is logged."""
        ...

    @property
    def weight(self) -> float:
        """Of that mean beside the training loss."""
        ...

    def rows(self, micro_batch: int) -> list[Row]:
        """Those that run with one micro-batch, on all ranks together."""
        ...

    def loss(self, row: Row, logits: torch.Tensor) -> torch.Tensor:
        """A scalar in nats, from the logits [answer tokens, vocabulary] that predict the row's answer, float32."""
        ...


class Objective(Protocol):
    """What is asked for, before a model is at hand."""

    @property
    def identity(self) -> str:
        """All that it depends on, beside the starting checkpoint and the seed."""
        ...

    def prepare(self, base: Path, max_length: int, seed: int) -> Terms:
        """Make it ready for a fine-tune of the checkpoint `base`. Collective."""
        ...


class Order:
    """Which examples run with a micro-batch: all of them once, shuffled, then all again in another order.

    It is told by the micro-batch's number alone, so that a fine-tune that was interrupted goes on where it was.

    Args:
        examples: how many there are.
        rows: a micro-batch.
        seed: of the order.
    """

    def __init__(self, examples: int, rows: int, seed: int) -> None:
        self.examples = examples
        self.rows = rows
        self.seed = seed

    def of(self, micro_batch: int) -> list[int]:
        """Indices of examples."""
        first = micro_batch * self.rows
        return [self._at(position) for position in range(first, first + self.rows)]

    def _at(self, position: int) -> int:
        epoch, index = divmod(position, self.examples)
        order = list(range(self.examples))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        return order[index]
