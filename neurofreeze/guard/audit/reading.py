"""Everything that is measured of one model, as it is or under an intervention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from neurofreeze.config.audit import AuditConfig
from neurofreeze.data.batches import prompt_ids
from neurofreeze.data.examples import Example
from neurofreeze.errors import ModelError
from neurofreeze.evaluation.generation import continuation_ids
from neurofreeze.evaluation.measure import EvaluationData, Outcomes, measure
from neurofreeze.guard.audit.divergence import divergences
from neurofreeze.guard.audit.probe import LinearProbe
from neurofreeze.guard.steering.blocks import blocks, last_states, require_layer


@dataclass(frozen=True)
class Reading:
    """Prompt by prompt, in the order of the data sets.

    Attributes:
        outcomes: refusals, over-refusals, margins, losses of general answers.
        probe_harmful, probe_harmless: distances from the original's probe's plane, of harmful requests and look-alikes.
        kl_harmful, kl_harmless: nats by position of the answer, of harmful requests and general ones; none of the
            original itself.
    """

    outcomes: Outcomes
    probe_harmful: list[float]
    probe_harmless: list[float]
    kl_harmful: list[list[float]] = field(default_factory=list)
    kl_harmless: list[list[float]] = field(default_factory=list)

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Reading:
        """What `asdict` made of one."""
        return cls(**{**stored, "outcomes": Outcomes(**stored["outcomes"])})


@dataclass(frozen=True)
class AuditData:
    """Prompts by role; see AuditDataConfig."""

    harmful: Sequence[Example]
    lookalikes: Sequence[Example]
    general: Sequence[Example]
    probe_harmful: Sequence[Example]
    probe_harmless: Sequence[Example]

    @property
    def evaluation(self) -> EvaluationData:
        """The sets on which refusals, margins and losses are measured."""
        return EvaluationData(self.harmful, self.lookalikes, [], self.general)


class Instrument:
    """Measures models with one tokenizer, on one set of prompts, against one original.

    Args:
        model: the original, in evaluation mode.
        tokenizer: its own.
        data: what is measured on.
        config: how.

    Raises:
        ConfigError: if the model has no layer for the probe.
    """

    def __init__(self, model: Any, tokenizer: Any, data: AuditData, config: AuditConfig) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.data = data
        self.config = config
        self.layer = 2 * len(blocks(model)) // 3 if config.probe.layer is None else config.probe.layer
        require_layer(self.layer, model, "probe.layer")

    def original(self, progress: Callable[[], None] | None = None) -> Reading:
        """The model as it is.

        Raises:
            ModelError: if it computes NaN or infinity.
        """
        return Reading(self._outcomes(self.model, progress), *self._probed(self.model))

    def changed(
        self, applied: Callable[[], AbstractContextManager[Any]], progress: Callable[[], None] | None = None
    ) -> Reading:
        """The model under an intervention: `applied` yields it, and leaves the original as it was afterwards.

        Raises:
            ModelError: if it computes NaN or infinity.
        """
        with applied() as model:
            outcomes, probed = self._outcomes(model, progress), self._probed(model)
        size, pad = self.config.evaluation.batch_size, self.tokenizer.pad_token_id
        harmful, harmless = (divergences(self.model, applied, rows, size, pad, progress) for rows in self._answers)
        for rows in (harmful, harmless):
            _require_finite("divergence", [value for row in rows for value in row])
        return Reading(outcomes, *probed, harmful, harmless)

    @property
    def steps(self) -> int:
        """How often `changed` calls its progress."""
        size = self.config.evaluation.batch_size
        batches = sum(-(-len(rows) // size) for rows in (self.data.harmful, self.data.general))
        return self.data.evaluation.steps(self.config.evaluation) + batches

    def _outcomes(self, model: Any, progress: Callable[[], None] | None) -> Outcomes:
        c = self.config
        found = measure(model, self.tokenizer, self.data.evaluation, c.evaluation, c.max_length, progress)
        _require_finite("refusal margin", found.margins)
        _require_finite("loss", found.general_losses)
        return found

    def _probed(self, model: Any) -> tuple[list[float], list[float]]:
        harmful, harmless = (self._states(model, rows) for rows in (self.data.harmful, self.data.lookalikes))
        return self._probe.margins(harmful), self._probe.margins(harmless)

    def _states(self, model: Any, examples: Sequence[Example]) -> Any:
        rows = [prompt_ids(self.tokenizer, example) for example in examples]
        size, pad = self.config.evaluation.batch_size, self.tokenizer.pad_token_id
        found = last_states(model, rows, [self.layer], size, pad)[0]
        _require_finite("hidden state", found)
        return found

    @cached_property
    def _probe(self) -> LinearProbe:
        """Of the original, on the calibration prompts."""
        harmful, harmless = (
            self._states(self.model, rows) for rows in (self.data.probe_harmful, self.data.probe_harmless)
        )
        return LinearProbe.fit(harmful, harmless, self.config.probe.c)

    @cached_property
    def _answers(self) -> tuple[list[tuple[list[int], int]], list[tuple[list[int], int]]]:
        """Harmful and general requests with the original's own answers, which are kept in memory only."""
        harmful, general = (
            [prompt_ids(self.tokenizer, example) for example in rows] for rows in (self.data.harmful, self.data.general)
        )
        size = self.config.evaluation.batch_size
        found = continuation_ids(
            self.model, self.tokenizer, harmful + general, max_new_tokens=self.config.tokens, batch_size=size
        )
        rows = [(prompt + answer, len(prompt)) for prompt, answer in zip(harmful + general, found, strict=True)]
        return rows[: len(harmful)], rows[len(harmful) :]


def _require_finite(what: str, values: Any) -> None:
    # NaN is neither above a tolerance nor below it: a broken model would pass for one whose safety is not eroded.
    if not np.isfinite(np.asarray(values, dtype=np.float64)).all():
        raise ModelError(
            f"a {what} of this model is not finite, so that nothing can be said of its safety; are its weights NaN, or "
            "is the intervention larger than its precision holds? Mend it or leave it out"
        )
