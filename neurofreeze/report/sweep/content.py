"""What the comparison of a sweep's runs shows, already measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from neurofreeze.evaluation.statistics import Rate

START = "start"


@dataclass(frozen=True)
class SweepArm:
    """One arm of one run, or the starting point; what was not measured is None."""

    name: str
    refusals: Rate | None  # of harmful requests
    over_refusals: Rate | None  # of benign look-alikes
    margin: float | None  # nats
    domain_loss: float | None  # nats per token
    frozen: float | None  # share of all neurons
    changed: int | None  # frozen elements that differ from the start; None: nothing was frozen, or not verified

    @property
    def verified(self) -> str:
        """Whether what is frozen stayed."""
        if not self.frozen:
            return "-"
        return {None: "not verified", 0: "intact"}.get(self.changed, "CHANGED")


@dataclass(frozen=True)
class SweepRun:
    """One run: where it is, how it went, the settings in which the sweep's runs differ, its arms."""

    name: str
    state: str
    settings: dict[str, str]
    arms: list[SweepArm] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether its command ended well."""
        return self.state == "complete"


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Mean and range."""
        return cls(sum(values) / len(values), min(values), max(values))


@dataclass(frozen=True)
class OverSeeds:
    """One arm of runs that differ in nothing but their seed."""

    settings: dict[str, str]
    arm: str
    seeds: int
    refusals: Spread  # in [0, 1]
    over_refusals: Spread
    margin: Spread
    domain_loss: Spread


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep."""

    folder: Path
    runs: list[SweepRun]
    start: SweepArm | None  # where all runs start from, if that is the same for all
    seeds: list[OverSeeds]

    @property
    def settings(self) -> list[str]:
        """The settings in which runs differ."""
        return list(dict.fromkeys(key for run in self.runs for key in run.settings))

    @property
    def points(self) -> list[tuple[SweepRun, SweepArm]]:
        """Every arm that was measured, with its run."""
        return [(run, arm) for run in self.runs for arm in run.arms if arm.refusals and arm.domain_loss is not None]
