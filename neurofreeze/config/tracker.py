"""Where a run's numbers go beside metrics.jsonl, and what is measured while it trains: conf/tracker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from neurofreeze.config.checks import check

TRACKERS = ("jsonl", "wandb", "tensorboard")


@dataclass
class TrackerConfig:
    """metrics.jsonl is always written; a tracker mirrors it."""

    name: str = "jsonl"  # jsonl: nothing more
    project: str = "neurofreeze"
    entity: Optional[str] = None
    mode: str = "auto"  # wandb: online, offline; auto: online if there is a key
    tags: list[str] = field(default_factory=list)
    artifacts: bool = True  # wandb: upload masks and the report

    def __post_init__(self) -> None:
        check(self.name in TRACKERS, "tracker.name", self.name, f"one of {', '.join(TRACKERS)}")
        check(self.mode in ("auto", "online", "offline"), "tracker.mode", self.mode, "auto, online or offline")


@dataclass
class MonitorConfig:
    """What is measured on the model during training, on the first prompts of data.safety, for drift of data.utility."""

    every: int = 0  # optimizer steps; 0: nothing
    prompts: int = 16
    refusals: bool = True  # also generate openings and count refusals, not only the margin
    updates: bool = True  # also the share of each site in the norm of the update since the start
    reference: Optional[str] = None  # of the safety neurons' activations, a folder: also how far they drift from it

    def __post_init__(self) -> None:
        check(self.every >= 0, "monitor.every", self.every, "a number not below 0")
        check(self.prompts > 0, "monitor.prompts", self.prompts, "a positive number")
