"""One model's whole evaluation: the outcome of every prompt, from which rates, means and paired tests follow.

It is made of parts, a batch of prompts each, which depend on nothing but the data and the settings: so that they may be
done anywhere and in any order, and come to the same outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from neurofreeze.config.schema import EvaluationConfig
from neurofreeze.data.batches import answer_ids, prompt_ids
from neurofreeze.data.examples import Example
from neurofreeze.evaluation.generation import is_degenerate, openings
from neurofreeze.evaluation.likelihood import COMPLYING, REFUSING, each_loss, nothing_left, refusal_margins
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


class Part(NamedTuple):
    """A batch of prompts to measure one thing of: "harmful", "lookalikes", "margins", "domain" or "general"."""

    what: str
    indices: list[int]  # in their data set


def plan(tokenizer: Any, data: EvaluationData, config: EvaluationConfig, max_length: int | None) -> list[Part]:
    """All parts, of each kind those with the longest prompts first, so that padding is small and memory peaks early.

    Raises:
        DataError: if nothing of any answer of a set is left within `max_length`.
    """
    harmful = longest_first([len(prompt_ids(tokenizer, example)) for example in data.harmful])
    order = {
        "harmful": harmful,
        "lookalikes": longest_first([len(prompt_ids(tokenizer, example)) for example in data.lookalikes]),
        "margins": harmful,
    }
    for what in ("domain", "general"):
        rows = [answer_ids(tokenizer, example) for example in getattr(data, what)]
        if rows and not any(ids[:max_length][start:] for ids, start in rows):
            raise nothing_left(f"the whole {what} set", max_length)
        order[what] = longest_first([len(ids[:max_length]) for ids, _ in rows])
    return [Part(what, part) for what, indices in order.items() for part in cut(indices, config.batch_size)]


def values(
    model: Any,
    tokenizer: Any,
    data: EvaluationData,
    part: Part,
    config: EvaluationConfig,
    max_length: int | None,
    progress: Callable[[], None] | None = None,
) -> list[Any]:
    """What a part comes to, prompt by prompt, JSON-serialisable; deterministic. `model` must be in evaluation mode.

    Of an answer, whether it is a refusal and degenerate, and its first words; of "margins" and losses, nats.
    """
    examples = [getattr(data, "harmful" if part.what == "margins" else part.what)[index] for index in part.indices]
    if part.what == "margins":
        return refusal_margins(model, tokenizer, examples, config.batch_size, progress)
    if part.what in ("domain", "general"):
        return each_loss(model, tokenizer, examples, config.batch_size, max_length, progress)
    phrases = phrase_list(config.phrases)
    texts = openings(
        model,
        tokenizer,
        examples,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        progress=progress,
    )
    return [[phrases.is_refusal(text), is_degenerate(text), " ".join(text.split()[:OPENING_WORDS])] for text in texts]


def gathered(data: EvaluationData, found: Iterable[tuple[Part, list[Any]]]) -> Outcomes:
    """The outcomes, from the values of all parts in any order."""
    by_prompt: dict[str, dict[int, Any]] = {}
    for part, values_of in found:
        by_prompt.setdefault(part.what, {}).update(zip(part.indices, values_of, strict=True))
    harmful, lookalikes, margins, domain, general = (
        [by_prompt[what][index] for index in range(size)]
        for what, size in (
            ("harmful", len(data.harmful)),
            ("lookalikes", len(data.lookalikes)),
            ("margins", len(data.harmful)),
            ("domain", len(data.domain)),
            ("general", len(data.general)),
        )
    )
    return Outcomes(
        refused=[refused for refused, _, _ in harmful],
        over_refused=[refused for refused, _, _ in lookalikes],
        degenerate=[degenerate for _, degenerate, _ in harmful + lookalikes],
        margins=margins,
        domain_losses=[loss for loss in domain if loss is not None],
        general_losses=[loss for loss in general if loss is not None],
        opening_words=[words for _, _, words in harmful + lookalikes],
    )


def measure(
    model: Any,
    tokenizer: Any,
    data: EvaluationData,
    config: EvaluationConfig,
    max_length: int | None,
    progress: Callable[[], None] | None = None,
) -> Outcomes:
    """Evaluate `model` on `data`, in this process; deterministic."""
    model.eval()
    parts = plan(tokenizer, data, config, max_length)
    return gathered(
        data,
        ((part, values(model, tokenizer, data, part, config, max_length, progress)) for part in parts),
    )


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length, equal ones in their order."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def cut(indices: Sequence[int], size: int) -> list[list[int]]:
    """Slices of `size` indices, the last one shorter if need be."""
    return [list(indices[begin : begin + size]) for begin in range(0, len(indices), size)]
