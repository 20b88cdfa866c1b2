"""The settings of method=safeneuron and of its preference pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from neurofreeze.config.checks import check


@dataclass
class PreferencesConfig:
    """Where preference pairs come from: `bundled:preferences/<split>`, files, or hub ids."""

    safety: list[str] = field(default_factory=lambda: ["bundled:preferences/safety"])
    helpfulness: list[str] = field(default_factory=lambda: ["bundled:preferences/helpfulness"])

    @property
    def sources(self) -> list[str]:
        """All of them."""
        return [*self.safety, *self.helpfulness]


@dataclass
class SafeNeuronConfig:
    """SafeNeuron: preference training with the safety neurons frozen, which are then found again, round by round."""

    contrast: dict[str, Any] = field(default_factory=dict)  # options of strategy=contrast, such as tau_es and tau_sas
    rounds: int = 1  # how often neurons are found, frozen and the rest trained; the paper's T0 is the first
    safety_share: float = 0.3  # of safety pairs among all that are trained on
    beta: float = 0.1  # of DPO
    suppress: bool = False  # train without the activations of frozen neurons
    prune_rounds: bool = False  # also prune what each round before the last leaves, which takes as long as evaluation

    def __post_init__(self) -> None:
        given = self.contrast.get("statistic")
        check(given is None, "method.safeneuron.contrast.statistic", given, "none: es and sas are both taken")
        check(self.rounds > 0, "method.safeneuron.rounds", self.rounds, "a positive number")
        check(0 < self.safety_share <= 1, "method.safeneuron.safety_share", self.safety_share, "a number in (0, 1]")
        check(self.beta > 0, "method.safeneuron.beta", self.beta, "a number above 0")
