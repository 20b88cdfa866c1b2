"""What guards a model while it answers: the group conf/guard, for commands that answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Optional

from omegaconf import MISSING

from neurofreeze.config.checks import check
from neurofreeze.config.judge import EndpointConfig, JudgeConfig


@dataclass
class FilterEndpointConfig(EndpointConfig):
    """The server of a judge that filters."""

    KEY: ClassVar[str] = "guard.filters.*.judge.endpoint"


@dataclass
class FilterJudgeConfig(JudgeConfig):
    """A judge that filters."""

    KEY: ClassVar[str] = "guard.filters.*.judge"
    endpoint: FilterEndpointConfig = field(default_factory=FilterEndpointConfig)


@dataclass
class FilterConfig:
    """A judge of whole answers, and what is done about unsafe ones."""

    judge: FilterJudgeConfig = MISSING
    action: str = "refuse"  # give `text` instead; or flag: an event and nothing else
    text: Optional[str] = None  # null: the usual refusal
    undecided: str = "unsafe"  # what an answer is that the judge cannot decide about: unsafe or safe

    def __post_init__(self) -> None:
        # A phrase list tells refusals from all else: as a filter it would let refusals through and nothing more.
        named = self.judge.name != "phrases"
        check(named, "guard.filters.*.judge.name", self.judge.name, "guard, harmbench, classifier or endpoint")
        check(self.action in ("refuse", "flag"), "guard.filters.*.action", self.action, "refuse or flag")
        check(self.undecided in ("unsafe", "safe"), "guard.filters.*.undecided", self.undecided, "unsafe or safe")
        check(self.text is None or bool(self.text.strip()), "guard.filters.*.text", self.text, "some words or null")


@dataclass
class GuardConfig:
    """Gates, which judge every step of an answer together; then filters, which judge it whole, one after the other."""

    gates: list[str] = field(default_factory=list)  # folders written by `neurofreeze gate` or Gate.save_pretrained
    filters: dict[str, FilterConfig] = field(default_factory=dict)  # by names of your own, in order
    expert: Optional[str] = None  # of gates that need one; null: by the name in their folder
    other_weights: bool = False  # take gates made for other weights, such as those before a fine-tune

    def __post_init__(self) -> None:
        check(len(set(self.gates)) == len(self.gates), "guard.gates", self.gates, "each folder once")


def with_filters(overrides: Sequence[str]) -> list[str]:
    """Overrides in which `guard.filters.NAME.KEY=VALUE` may be the first that is heard of a filter.

    Hydra cannot make an entry of a typed dictionary out of its parts. Ahead of them comes an entry with the schema's
    defaults, which changes nothing in one that is there; the parts are then settings as any other.
    """
    found: list[str] = []
    for override in overrides:
        if part := re.match(r"\+*(guard\.filters\.([\w-]+)[.=].*)", override, re.DOTALL):
            found += [f"++guard.filters={{{part[2]}:{{judge:{{}}}}}}", part[1]]
        else:
            found.append(override)
    return found
