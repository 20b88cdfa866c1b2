"""The settings of `neurofreeze audit`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Optional

from neurofreeze.config.checks import check
from neurofreeze.config.schema import EvaluationConfig
from neurofreeze.config.steering import SteeringConfig

# What each intervention needs beside the model.
INTERVENTIONS = {
    "steering": None,
    "checkpoint": "tuned",
    "mask": "mask",
    "adapter": "adapter",
    "gate": "gate",
    "prune": "mask",
}


@dataclass
class AuditDataConfig:
    """Where prompts come from, as in the settings of a run; no prompt may be in two of them."""

    harmful: str = "bundled:harmful/evaluation"
    lookalikes: str = "bundled:lookalikes/evaluation"
    general: str = "bundled:instructions/evaluation"
    probe_harmful: str = "bundled:harmful/calibration"
    probe_harmless: list[str] = field(default_factory=lambda: ["bundled:lookalikes/calibration"])
    benign: str = "bundled:instructions/align"  # that steering vectors are found from
    mixed: str = "bundled:harmful/align"  # that are mixed in by steering.mix


@dataclass
class ProbeConfig:
    """The linear probe for harm, on what a layer gives at the last token of the prompt."""

    layer: Optional[int] = None  # counted from 0; null: two thirds of the way up
    c: float = 1.0  # inverse strength of the L2 penalty

    def __post_init__(self) -> None:
        check(self.layer is None or self.layer >= 0, "probe.layer", self.layer, "a layer from 0 on or null")
        check(self.c > 0, "probe.c", self.c, "a number above 0")


@dataclass
class PruneConfig:
    """intervention=prune: the neurons of the mask with the highest scores, beside random ones."""

    shares: list[float] = field(default_factory=lambda: [0.001, 0.003, 0.01, 0.03])  # of the neurons of each kind
    draws: int = 1  # random masks of each size

    def __post_init__(self) -> None:
        growing = all(a < b for a, b in zip([0.0, *self.shares], [*self.shares, 1.0], strict=True))
        check(bool(self.shares) and growing, "prune.shares", self.shares, "growing shares between 0 and 1")
        check(self.draws > 0, "prune.draws", self.draws, "a positive number")


@dataclass
class AuditConfig:
    """One intervention on one model, against the model without it."""

    name: str = "audit"
    model: str = "smollm2-135m-instruct"
    revision: Optional[str] = None
    intervention: str = ""  # steering, checkpoint, mask, adapter, gate or prune
    strengths: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.2, 0.4])  # of a steering vector
    tuned: Optional[str] = None  # the folder of a checkpoint
    mask: Optional[str] = None  # the folder of a neuron mask; its neurons are ablated
    adapter: Optional[str] = None  # the folder of a PEFT adapter
    gate: Optional[str] = None  # the folder of a gate
    steering: SteeringConfig = field(default_factory=SteeringConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    tolerance: float = 0.5  # nats by which the refusal margin may change before that counts
    tokens: int = 12  # positions of the answer at which the change of the next token's distribution is measured
    max_length: int = 512  # tokens of a conversation kept for losses
    seed: int = 0  # of random masks
    overwrite: bool = False  # redo what is complete with other settings
    data: AuditDataConfig = field(default_factory=AuditDataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check(bool(self.model), "model", self.model, "a checkpoint folder, a GGUF file, a hub id or a short name")
        known = ", ".join(INTERVENTIONS)
        check(self.intervention in INTERVENTIONS, "intervention", self.intervention, f"one of {known}")
        if needed := INTERVENTIONS[self.intervention]:
            found = getattr(self, needed)
            check(bool(found), needed, found, f"a folder, since intervention={self.intervention}")
        given = bool(self.strengths) and len(set(self.strengths)) == len(self.strengths)
        finite = all(map(math.isfinite, self.strengths))
        check(given and finite, "strengths", self.strengths, "one or more finite numbers, each once")
        check(self.tolerance >= 0, "tolerance", self.tolerance, "a number of nats not below 0")
        check(self.tokens > 0, "tokens", self.tokens, "a positive number")
        check(self.max_length > 0, "max_length", self.max_length, "a positive number")
        check(self.seed >= 0, "seed", self.seed, "a number not below 0")
        asked = [*self.evaluation.variants, *([self.evaluation.judge.name] * (self.evaluation.judge.name != "phrases"))]
        check(not asked, "evaluation", asked, "no variants and no judge model, which `neurofreeze evaluate` has")
