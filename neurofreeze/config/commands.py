"""The settings of commands that run no stage: compare, verify, status, logs, cancel, and the report of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Optional

from omegaconf import MISSING

from neurofreeze.config.audit import AuditConfig
from neurofreeze.config.benchmark import BenchmarkConfig
from neurofreeze.config.checks import check
from neurofreeze.config.gate import GateConfig
from neurofreeze.config.monitor import MonitorCommandConfig
from neurofreeze.config.serve import ChatConfig, ServeConfig


@dataclass
class CompareConfig:
    """`neurofreeze compare`: two or more masks of one model."""

    masks: list[str] = field(default_factory=list)
    output: str = "overlap.png"  # the figure

    def __post_init__(self) -> None:
        check(len(self.masks) > 1, "masks", self.masks, "two or more mask folders, masks=a,b")
        check(len(set(self.masks)) == len(self.masks), "masks", self.masks, "each mask once")


@dataclass
class VerifyConfig:
    """`neurofreeze verify`: two checkpoints and a mask, or a run folder with all three."""

    base: Optional[str] = None
    tuned: Optional[str] = None
    mask: Optional[str] = None
    output: Optional[str] = None  # where to write verification.json; null: into the tuned checkpoint's folder
    name: str = "quickstart"

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if f.name in ("base", "tuned", "mask") and getattr(self, f.name)]
        check(
            len(given) in (0, 3),
            "verify",
            ", ".join(given),
            "base=, tuned= and mask= together, or none of them (run folder)",
        )


@dataclass
class FolderConfig:
    """`neurofreeze status FOLDER`, `neurofreeze cancel FOLDER`."""

    run: str = MISSING  # the folder of a run or a sweep


@dataclass
class LogsConfig(FolderConfig):
    """`neurofreeze logs FOLDER`."""

    lines: int = 40  # the last ones; 0: all
    follow: bool = False  # go on with what is written, until the job has ended or Ctrl-C

    def __post_init__(self) -> None:
        check(self.lines >= 0, "lines", self.lines, "a number not below 0")


@dataclass
class SweepConfig:
    """`neurofreeze report SWEEP`."""

    sweep: str = MISSING  # the folder of the sweep


SCHEMAS: dict[str, type[Any]] = {
    "audit": AuditConfig,
    "benchmark": BenchmarkConfig,
    "cancel": FolderConfig,
    "chat": ChatConfig,
    "compare": CompareConfig,
    "gate": GateConfig,
    "logs": LogsConfig,
    "monitor": MonitorCommandConfig,
    "serve": ServeConfig,
    "status": FolderConfig,
    "sweep": SweepConfig,
    "verify": VerifyConfig,
}  # of the commands with one of their own
