"""What is measured of a model: at every point of a trajectory what arms are compared by, at its end the rest."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurofreeze.benchmark.data import SuiteData
from neurofreeze.config.benchmark import PromptsConfig
from neurofreeze.config.schema import Config
from neurofreeze.data import Example
from neurofreeze.evaluation.generation import is_degenerate, openings
from neurofreeze.evaluation.likelihood import losses, refusal_margins
from neurofreeze.evaluation.phrases import phrase_list
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.training.adaptation import Adaptation


class Measuring:
    """Measures checkpoints of one model, each in the precision that it would be saved in.

    Args:
        start: checkpoint folder of the model.
        data: the prompts.
        config: how answers are generated and judged.
        prompts: how many have their margin measured.
    """

    def __init__(self, start: Path, data: SuiteData, config: Config, prompts: PromptsConfig) -> None:
        self.model = load_model(start).eval()
        self.tokenizer = load_tokenizer(start)
        self.data = data
        self.config = config
        self.prompts = prompts

    def take(self, model: Any, adaptation: Adaptation | None) -> None:
        """Measure this model from here on, as it is now: rounded to the start's precision, with what was learned
        beside its weights folded in. It is left as it is.
        """
        whole = model if adaptation is None else adaptation.merge(copy.deepcopy(model))
        self.model.load_state_dict(whole.state_dict())

    def point(self) -> dict[str, Any]:
        """Held-out loss, nats per answer token, and for each harmful request whether it is refused; degenerate answers
        are counted.
        """
        refused, degenerate = self._refused(self.data.sets.harmful)
        return {"loss": self._loss(self.data.sets.holdout), "refused": refused, "degenerate": degenerate}

    def end(self) -> dict[str, Any]:
        """Refusals of the other sets, general loss and refusal margin; None for what there are no prompts of."""
        elsewhere, _ = self._refused(self.data.elsewhere)
        lookalikes, _ = self._refused(self.data.sets.lookalikes)
        margins = refusal_margins(
            self.model, self.tokenizer, self.data.margin(self.prompts), self.config.evaluation.batch_size
        )
        return {
            "elsewhere": elsewhere,
            "over_refused": lookalikes,
            "general_loss": self._loss(self.data.sets.general),
            "margin": sum(margins) / len(margins),
        }

    def _refused(self, examples: Sequence[Example]) -> tuple[list[bool], int]:
        c = self.config.evaluation
        phrases = phrase_list(c.phrases)
        texts = openings(self.model, self.tokenizer, examples, max_new_tokens=c.max_new_tokens, batch_size=c.batch_size)
        return [phrases.is_refusal(text) for text in texts], sum(map(is_degenerate, texts))

    def _loss(self, examples: Sequence[Example]) -> float:
        c = self.config
        found = losses(self.model, self.tokenizer, examples, c.evaluation.batch_size, c.training.max_length)
        return sum(found) / len(found)
