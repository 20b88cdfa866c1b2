"""Replay: a few known answers (refusals, answers to look-alikes) are learned again beside the training data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from neurofreeze.config.objectives import ReplayConfig
from neurofreeze.data.batches import answer_ids
from neurofreeze.data.examples import Example, digest
from neurofreeze.errors import DataError
from neurofreeze.models.load import load_tokenizer
from neurofreeze.training.objectives.base import Order, Row


@dataclass(frozen=True)
class Replay:
    """Mean negative log-likelihood per answer token, averaged over the rows.

    Args:
        config: weight and rows.
        examples: with answers.
    """

    config: ReplayConfig
    examples: Sequence[Example]

    @property
    def identity(self) -> str:
        """Its settings and the digest of its examples."""
        return f"replay {asdict(self.config)} of {digest(self.examples)}"

    def prepare(self, base: Path, max_length: int, seed: int) -> ReplayTerms:
        """The examples as token ids.

        Raises:
            DataError: if nothing of an answer is left within `max_length` tokens.
        """
        tokenizer = load_tokenizer(base)
        rows = []
        for index, example in enumerate(self.examples):
            ids, start = answer_ids(tokenizer, example)
            if start >= max_length:
                raise DataError(
                    f"the prompt {example.prompt[:60]!r} of data.replay takes {start} tokens, so that nothing of its "
                    f"answer is left within training.max_length={max_length}; raise it, or leave the prompt out"
                )
            rows.append(Row(index, ids[:max_length], start))
        return ReplayTerms(self.config.weight, rows, Order(len(rows), self.config.rows, seed))


@dataclass(frozen=True)
class ReplayTerms:
    """Replay of these rows in this order."""

    weight: float
    known: list[Row]
    order: Order
    name: str = "replay_loss"

    def rows(self, micro_batch: int) -> list[Row]:
        """Those that run with one micro-batch, on all ranks together."""
        return [self.known[index] for index in self.order.of(micro_batch)]

    def loss(self, row: Row, logits: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood of the answer's tokens, nats."""
        return F.cross_entropy(logits, torch.tensor(row.ids[row.start :], device=logits.device))
