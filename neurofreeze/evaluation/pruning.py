"""What pruning a choice of neurons does to the refusal margin and to the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurofreeze.data.examples import Example
from neurofreeze.evaluation.ablation import ablated
from neurofreeze.evaluation.likelihood import COMPLYING, REFUSING, losses, refusal_margins
from neurofreeze.evaluation.statistics import Mean
from neurofreeze.mask import NeuronMask


@dataclass(frozen=True)
class Pruned:
    """Margins of harmful requests and losses of ordinary answers, prompt by prompt, in nats."""

    margins: list[float]
    losses: list[float]

    def margin_drop(self, whole: Pruned) -> Mean:
        """How much the refusal margin falls against the whole model, over the same prompts."""
        return Mean.of(np.subtract(whole.margins, self.margins).tolist())

    def loss_rise(self, whole: Pruned) -> Mean:
        """How much the loss rises against the whole model, over the same examples."""
        return Mean.of(np.subtract(self.losses, whole.losses).tolist())


def prune(
    model: Any,
    tokenizer: Any,
    mask: NeuronMask | None,
    harmful: Sequence[Example],
    utility: Sequence[Example],
    *,
    batch_size: int = 32,
    max_length: int | None = 512,
    progress: Callable[[], None] | None = None,
) -> Pruned:
    """Measure `model` without the neurons of `mask`; with None, the whole model."""
    with ablated(model, mask) if mask is not None else nullcontext():
        return Pruned(
            refusal_margins(model, tokenizer, harmful, batch_size, progress),
            losses(model, tokenizer, utility, batch_size, max_length, progress),
        )


def steps(harmful: Sequence[Example], utility: Sequence[Example], batch_size: int) -> int:
    """How often `prune` calls `progress`."""
    openings = len(harmful) * (len(REFUSING) + len(COMPLYING))
    return -(-openings // batch_size) - (-len(utility) // batch_size)
