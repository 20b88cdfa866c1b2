"""What a report shows, already measured; the report computes nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from neurofreeze.evaluation.group_pruning import GroupPruned
from neurofreeze.evaluation.statistics import Mean, PairedTest, Rate
from neurofreeze.methods.migration import Transitions
from neurofreeze.methods.ratio_search import Curve
from neurofreeze.strategies.stability import Overlap

# SSAH's groups, in the order of their codes in `Site.groups`.
GROUPS = ("RU", "EUU", "CU", "ESU")
WHOLE = "whole"  # a model of which nothing is pruned


@dataclass(frozen=True)
class Site:
    """One row of the heat map: group code uint8 [neurons] (index into GROUPS) and frozen bool [neurons].

    Under methods without groups `groups` is empty.
    """

    name: str
    kind: Literal["attention", "mlp"]
    layer: int
    groups: npt.NDArray[np.uint8]
    frozen: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Measurements:
    """One model's evaluation. Refusal rates count refusals; losses are nats per response token."""

    refusals: Rate  # of harmful requests
    over_refusals: Rate  # of benign look-alikes
    margin: Mean  # log P(refusal openings) - log P(compliant openings), nats, on harmful requests
    domain_loss: Mean
    general_loss: Mean
    degenerate: Rate  # completions that are empty or repeat themselves, of all generated


@dataclass(frozen=True)
class Arm:
    """One fine-tuned model, or the starting point ("aligned": no training, no verification)."""

    name: str
    label: str
    measurements: Measurements
    losses: list[tuple[int, float]] = field(default_factory=list)  # (optimizer step, training loss)
    frozen_neurons: int = 0
    frozen_elements: int = 0
    verified_changed: int | None = None  # frozen elements that differ in at least one bit; None: nothing was frozen
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps it was trained for."""
        return self.losses[-1][0] if self.losses else 0


@dataclass(frozen=True)
class Judged:
    """What a judge found of one model's answers to the harmful requests, asked in one way."""

    label: str
    variant: str
    judge: str  # its label; verdicts of two judges are not comparable
    safe: Rate  # by a phrase list: refused
    unsafe: Rate
    undecided: Rate
    degenerate: Rate


@dataclass(frozen=True)
class Comparison:
    """A paired test between two arms on one set of prompts."""

    first: str
    second: str
    what: str
    test: PairedTest


@dataclass(frozen=True)
class Pruning:
    """The model without some neurons against the whole model: mean paired changes, in nats."""

    label: str
    margin_drop: Mean
    loss_rise: Mean


@dataclass(frozen=True)
class Robustness:
    """A model whole, without the safety neurons that were found in it, or without as many random ones at each site."""

    label: str  # of the model
    pruned: str  # what of it; WHOLE if nothing
    neurons: int  # that were pruned
    refusals: Rate
    over_refusals: Rate
    margin: Mean
    general_loss: Mean
    degenerate: Rate


@dataclass(frozen=True)
class DataSource:
    """One data set that was used, and the digest of its prompts."""

    role: str
    source: str
    rows: int
    digest: str


@dataclass(frozen=True)
class Content:
    """Everything the report shows."""

    title: str
    model: str
    model_source: str
    seed: int
    version: str
    created: str
    method: dict[str, Any]
    phrase_list: str
    total_neurons: int
    total_elements: int
    sites: list[Site]
    arms: list[Arm]
    comparisons: list[Comparison]
    data: list[DataSource]
    command: str
    config_yaml: str
    notes: list[str]
    search: list[Curve] = field(default_factory=list)  # of SSAH's ratios, if they were searched for
    robustness: list[Robustness] = field(default_factory=list)  # of each model under method=safeneuron
    judged: list[Judged] = field(default_factory=list)  # by model and variant, if a judge was asked
    pruned_groups: list[GroupPruned] = field(default_factory=list)  # the whole model, then without each group
    migrations: dict[str, list[Transitions]] = field(default_factory=dict)  # by arm: of all neurons, then of some
    pruned: list[Pruning] = field(default_factory=list)  # the chosen neurons first, then random ones
    overlaps: list[Overlap] = field(default_factory=list)  # of what was chosen on halves of the calibration sets
