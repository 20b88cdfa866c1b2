"""The prompts of a suite: a run's data sets, a second set of harmful requests, and a fixed sample of each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neurofreeze.config.benchmark import PromptsConfig, SuiteConfig, SuiteSetConfig
from neurofreeze.config.schema import Config
from neurofreeze.data import Example, digest, read, require_disjoint
from neurofreeze.errors import DataError
from neurofreeze.evaluation.phrases import phrase_list
from neurofreeze.stages.context import Run
from neurofreeze.stages.datasets import Datasets

SAMPLED = ("harmful", "holdout", "lookalikes", "general")  # roles of a run's evaluation


@dataclass(frozen=True)
class SuiteData:
    """Data sets by role as a run has them, sampled for evaluation; and harmful requests of another kind, maybe none."""

    sets: Datasets
    elsewhere: list[Example]

    @classmethod
    def read(cls, config: Config, suite: SuiteConfig, found: SuiteSetConfig, folder: Path) -> SuiteData:
        """Read all sets of one fine-tuning set.

        Raises:
            DataError: if a set cannot be read, nothing is left of it, or a prompt occurs in two roles.
        """
        sets = Run(config, folder).data
        elsewhere = read(suite.elsewhere, responses=False) if suite.elsewhere else []
        # Collections of harmful requests quote each other; a request counts in the primary set only.
        primary = {example.key for example in sets.harmful}
        elsewhere = [example for example in elsewhere if example.key not in primary]
        if suite.elsewhere and not elsewhere:
            raise DataError(f"suite.elsewhere={suite.elsewhere} has only requests of data.harmful; expected others")
        for role, rows in sets.roles().items():
            require_disjoint({f"data.{role}": rows, "suite.elsewhere": elsewhere})
        if found.drop_refusals:
            sets = _without_refusals(sets, config)
        sampled: Any = {role: sample(getattr(sets, role), getattr(suite.prompts, role)) for role in SAMPLED}
        return cls(replace(sets, **sampled), sample(elsewhere, suite.prompts.elsewhere))

    def digests(self, *roles: str) -> dict[str, str]:
        """Role -> digest, with "elsewhere"."""
        return {**self.sets.digests(*roles), "elsewhere": digest(self.elsewhere)}

    def margin(self, prompts: PromptsConfig) -> Sequence[Example]:
        """The harmful requests whose refusal margin is measured."""
        return self.sets.harmful[: prompts.margin]


def _without_refusals(sets: Datasets, config: Config) -> Datasets:
    phrases = phrase_list(config.evaluation.phrases)
    left: Any = {
        role: [example for example in getattr(sets, role) if not phrases.is_refusal(example.response or "")]
        for role in ("train", "holdout")
    }
    for role, rows in left.items():
        if not rows:
            raise DataError(f"data.{role} has nothing but refusals by {phrases.label}; set drop_refusals=false for it")
    return replace(sets, **left)


def sample(examples: Sequence[Example], count: int | None) -> list[Example]:
    """`count` of the examples, always the same ones, in their order; all of them if there are no more."""
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[index] for index in sorted(random.Random(0).sample(range(len(examples)), count))]
