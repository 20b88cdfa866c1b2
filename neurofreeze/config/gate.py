"""The settings of `neurofreeze gate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING

from neurofreeze.config.checks import check

TRIGGERS = ("neurons", "probe", "lif")
REACTIONS = ("flag", "refuse", "reflect", "blend")


@dataclass
class TriggerConfig:
    """What tells that an answer is going wrong: a name, and options of the trigger's `fit`, or of LifTrigger."""

    name: str = "probe"
    options: dict[str, Any] = field(default_factory=dict)
    mask: Optional[str] = None  # neurons: the folder of a mask to choose among; null: all MLP neurons

    def __post_init__(self) -> None:
        check(self.name in TRIGGERS, "trigger.name", self.name, f"one of {', '.join(TRIGGERS)}")
        check(self.mask is None or self.name == "neurons", "trigger.mask", self.mask, f"null with trigger {self.name}")


@dataclass
class ReactionConfig:
    """What is done once it fires: a name, and the fields of the reaction's class."""

    name: str = "refuse"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.name in REACTIONS, "reaction.name", self.name, f"one of {', '.join(REACTIONS)}")


@dataclass
class GateConfig:
    """`neurofreeze gate`: fit a trigger, calibrate its threshold on other prompts, save both with a reaction."""

    model: str = MISSING
    revision: Optional[str] = None
    expert: Optional[str] = None  # for trigger lif and reaction blend
    output: str = "gates/probe"  # the folder to write
    trigger: TriggerConfig = field(default_factory=TriggerConfig)
    reaction: ReactionConfig = field(default_factory=ReactionConfig)
    steps: Optional[int] = 8  # tokens of an answer that are judged; null: all
    target: Optional[float] = 0.05  # false-positive rate; null: keep the trigger's own threshold, lif's 1
    harmful: list[str] = field(default_factory=lambda: ["bundled:harmful/calibration"])
    benign: list[str] = field(
        default_factory=lambda: ["bundled:instructions/calibration", "bundled:lookalikes/calibration"]
    )
    fit_share: float = 0.5  # of the prompts, to fit the trigger on; the threshold is from the rest
    batch_size: int = 8
    seed: int = 0  # of which prompts are for what

    def __post_init__(self) -> None:
        check(0 < self.fit_share < 1, "fit_share", self.fit_share, "a number in (0, 1)")
        check(self.target is None or 0 <= self.target < 1, "target", self.target, "a number in [0, 1) or null")
        # Without, the gate would be fitted first and refused then.
        own = self.target is not None or self.trigger.name == "lif"
        check(own, "target", self.target, f"a number, since trigger {self.trigger.name} has no threshold of its own")
        if self.trigger.name == "lif" or self.reaction.name == "blend":
            who = "trigger lif" if self.trigger.name == "lif" else "reaction blend"
            check(self.expert is not None, "expert", self.expert, f"a model, since {who} needs one")
        else:
            check(self.expert is None, "expert", self.expert, "null: neither this trigger nor this reaction needs one")
        check(self.steps is None or self.steps > 0, "steps", self.steps, "a positive number of tokens or null")
        check(bool(self.harmful and self.benign), "harmful, benign", [], "one or more data sets each")
        check(self.batch_size > 0, "batch_size", self.batch_size, "a positive number")
        check(self.seed >= 0, "seed", self.seed, "a number not below 0")
