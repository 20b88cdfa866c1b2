"""What pruning one of SSAH's groups does to safety and to utility: the paper's table, with random controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurofreeze.evaluation.measure import Outcomes
from neurofreeze.evaluation.statistics import Mean, Rate


@dataclass(frozen=True)
class GroupPruned:
    """A model without some neurons.

    Attributes:
        label: "whole", a group's name, or "random like ESU, 0".
        neurons: how many are pruned.
        attacks: harmful requests that are not refused, whatever is answered.
        over_refusals: of benign look-alikes.
        degenerate: completions that are empty or repeat themselves, of all generated; they count as attacks that
            succeed, so read both.
        margin, domain_loss, general_loss: of the pruned model, nats.
        domain_rise, general_rise: of the loss against the whole model, over the same examples, nats per token.
    """

    label: str
    neurons: int
    attacks: Rate
    over_refusals: Rate
    degenerate: Rate
    margin: Mean
    domain_loss: Mean
    general_loss: Mean
    domain_rise: Mean
    general_rise: Mean

    @classmethod
    def of(cls, label: str, neurons: int, found: Outcomes, whole: Outcomes) -> GroupPruned:
        """From the outcomes of every prompt, without the neurons and with them."""
        return cls(
            label=label,
            neurons=neurons,
            attacks=Rate.of([not refused for refused in found.refused]),
            over_refusals=Rate.of(found.over_refused),
            degenerate=Rate.of(found.degenerate),
            margin=Mean.of(found.margins),
            domain_loss=Mean.of(found.domain_losses),
            general_loss=Mean.of(found.general_losses),
            domain_rise=Mean.of(np.subtract(found.domain_losses, whole.domain_losses).tolist()),
            general_rise=Mean.of(np.subtract(found.general_losses, whole.general_losses).tolist()),
        )


@dataclass(frozen=True)
class InPaper:
    """SSAH's own figures of pruning ESU: attack success on AdvBench and mean utility before and after, in percent."""

    model: str
    share: float  # of neurons
    attacks: tuple[float, float]
    utility: tuple[float, float]

    def __str__(self) -> str:
        (before, after), (useful, less) = self.attacks, self.utility
        return f"{self.model}: {self.share} % pruned, attacks {before} to {after} %, utility {useful} to {less} %"


IN_PAPER = (
    InPaper("Llama-2-7B-Chat", 1.3, (10.0, 66.0), (58.3, 56.9)),
    InPaper("Llama-3-8B-Instruct", 1.4, (15.5, 86.5), (61.2, 57.6)),
    InPaper("Mistral-7B-v0.2", 2.0, (14.5, 62.5), (66.2, 63.3)),
)
