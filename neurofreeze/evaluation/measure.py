"""One model's whole evaluation: the outcome of every prompt, from which rates, means and paired tests follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from neurofreeze.config.schema import EvaluationConfig
from neurofreeze.data.examples import Example
from neurofreeze.evaluation.generation import is_degenerate, openings
from neurofreeze.evaluation.likelihood import COMPLYING, REFUSING, losses, refusal_margins
from neurofreeze.evaluation.phrases import phrase_list

OPENING_WORDS = 12


@dataclass(frozen=True)
class Outcomes:
    """Per prompt, in the order of the data sets.

    Attributes:
        refused: for harmful requests.
        over_refused: for benign look-alikes.
        degenerate: completions that are empty or repeat themselves, harmful requests first, then look-alikes.
        margins: refusal margins of the harmful requests, nats.
        domain_losses, general_losses: held-out loss, nats per answer token.
        opening_words: the first words of each completion; whole answers to harmful requests are never kept.
    """

    refused: list[bool]
    over_refused: list[bool]
    degenerate: list[bool]
    margins: list[float]
    domain_losses: list[float]
    general_losses: list[float]
    opening_words: list[str]


@dataclass(frozen=True)
class EvaluationData:
    """The evaluation sets; answers are needed in the last two only."""

    harmful: Sequence[Example]
    lookalikes: Sequence[Example]
    domain: Sequence[Example]
    general: Sequence[Example]

    def steps(self, config: EvaluationConfig) -> int:
        """How many batches `measure` runs."""
        sizes = (len(self.harmful), len(self.lookalikes), len(self.domain), len(self.general))
        margins = len(self.harmful) * (len(REFUSING) + len(COMPLYING))
        return sum(-(-size // config.batch_size) for size in (*sizes, margins))


def measure(
    model: Any,
    tokenizer: Any,
    data: EvaluationData,
    config: EvaluationConfig,
    max_length: int | None,
    progress: Callable[[], None] | None = None,
) -> Outcomes:
    """Evaluate `model` on `data`; deterministic."""
    model.eval()
    phrases = phrase_list(config.phrases)
    generation = {"max_new_tokens": config.max_new_tokens, "batch_size": config.batch_size, "progress": progress}
    harmful = openings(model, tokenizer, data.harmful, **generation)  # type: ignore[arg-type]
    benign = openings(model, tokenizer, data.lookalikes, **generation)  # type: ignore[arg-type]
    return Outcomes(
        refused=[phrases.is_refusal(text) for text in harmful],
        over_refused=[phrases.is_refusal(text) for text in benign],
        degenerate=[is_degenerate(text) for text in harmful + benign],
        margins=refusal_margins(model, tokenizer, data.harmful, config.batch_size, progress),
        domain_losses=losses(model, tokenizer, data.domain, config.batch_size, max_length, progress),
        general_losses=losses(model, tokenizer, data.general, config.batch_size, max_length, progress),
        opening_words=[" ".join(text.split()[:OPENING_WORDS]) for text in harmful + benign],
    )
