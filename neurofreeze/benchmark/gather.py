"""From the results of cells to numbers over seeds: means with intervals, and arms compared with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neurofreeze.benchmark.reading import Point, at_loss, common_loss
from neurofreeze.benchmark.suite import Outcome
from neurofreeze.config.benchmark import SuiteConfig
from neurofreeze.evaluation.seeds import SeedTest, holm
from neurofreeze.evaluation.statistics import Mean

BySeed = dict[int, float]

# What is measured of an arm, by name; rates in [0, 1], losses in nats per answer token, the margin in nats.
REFUSED, AT_LOSS = "refused", "refused at equal loss"
MEASURES = (REFUSED, AT_LOSS, "elsewhere", "over-refused", "loss", "general loss", "margin", "degenerate")


@dataclass(frozen=True)
class ArmResult:
    """One arm on one fine-tuning set.

    Attributes:
        name: of the arm.
        frozen: share of the neurons, None if nothing is frozen.
        values: measure -> seed -> number; a measure that a seed has not is left out.
        trajectories: seed -> points from the start.
    """

    name: str
    frozen: float | None
    values: dict[str, BySeed]
    trajectories: dict[int, list[Point]]

    @property
    def seeds(self) -> int:
        """How many are complete."""
        return len(self.values[REFUSED])

    def mean(self, measure: str) -> Mean | None:
        """Over seeds; None if no seed has it."""
        found = self.values.get(measure, {})
        return Mean.of(list(found.values())) if found else None


@dataclass(frozen=True)
class Compared:
    """One arm against another by one measure, over the seeds that both have; `holm` is p corrected over all arms."""

    arm: str
    against: str
    measure: str
    seeds: int
    test: SeedTest
    holm: float


@dataclass(frozen=True)
class SetResult:
    """All arms on one fine-tuning set.

    Attributes:
        name: of the set.
        start: measure -> number, of the checkpoint that all start from.
        arms: in the order of the suite, those without a complete seed left out.
        losses: seed -> the loss at which arms are compared.
        compared: arms with those of suite.against, by refusals at the end and at equal loss.
    """

    name: str
    start: dict[str, float]
    arms: list[ArmResult]
    losses: BySeed
    compared: list[Compared]


def gather(outcome: Outcome, suite: SuiteConfig) -> list[SetResult]:
    """Every fine-tuning set that has a complete cell."""
    found = [_of_set(name, outcome, suite) for name in suite.sets]
    return [result for result in found if result.arms]


def _of_set(name: str, outcome: Outcome, suite: SuiteConfig) -> SetResult:
    begin = outcome.starts[name]
    start = _measured(begin["point"], begin["end"])
    cells: dict[str, dict[int, Any]] = {}
    for cell, result in outcome.results:
        if cell.place.data == name:
            cells.setdefault(cell.place.arm, {})[cell.place.seed] = result
    trajectories = {
        arm: {seed: [_point(point) for point in (begin["point"], *found["points"])] for seed, found in of.items()}
        for arm, of in cells.items()
    }
    losses = {}
    for seed in range(suite.seeds):
        here = {arm: found[seed] for arm, found in trajectories.items() if seed in found}
        loss = common_loss(here, suite.against[0], suite.reach) if here else None
        if loss is not None:
            losses[seed] = loss
    arms = [_arm(arm, cells[arm], trajectories[arm], losses) for arm in suite.only if arm in cells]
    return SetResult(name, start, arms, losses, _compare(arms, suite.against))


def _arm(
    name: str, results: Mapping[int, Any], trajectories: dict[int, list[Point]], losses: Mapping[int, float]
) -> ArmResult:
    values: dict[str, BySeed] = {}
    for seed, result in results.items():
        measured = _measured(result["points"][-1], result["end"])
        read = at_loss(trajectories[seed], losses[seed]) if seed in losses else None
        for measure, value in {**measured, **({} if read is None else {AT_LOSS: read})}.items():
            values.setdefault(measure, {})[seed] = value
    one = next(iter(results.values()))
    frozen = one["frozen_neurons"] / one["neurons"] if "neurons" in one else None
    return ArmResult(name, frozen, values, trajectories)


def _measured(point: Mapping[str, Any], end: Mapping[str, Any]) -> dict[str, float]:
    found = {
        REFUSED: _rate(point["refused"]),
        "elsewhere": _rate(end["elsewhere"]),
        "over-refused": _rate(end["over_refused"]),
        "loss": point["loss"],
        "general loss": end["general_loss"],
        "margin": end["margin"],
        "degenerate": point["degenerate"] / len(point["refused"]),
    }
    return {name: value for name, value in found.items() if value is not None}


def _point(point: Mapping[str, Any]) -> Point:
    return Point(point["loss"], sum(point["refused"]) / len(point["refused"]))


def _rate(outcomes: Sequence[bool]) -> float | None:
    return sum(outcomes) / len(outcomes) if outcomes else None


def _compare(arms: Sequence[ArmResult], against: Sequence[str]) -> list[Compared]:
    by_name = {arm.name: arm for arm in arms}
    compared = []
    for other in [by_name[name] for name in against if name in by_name]:
        for measure in (REFUSED, AT_LOSS):
            tests = {
                arm.name: test for arm in arms if arm is not other and (test := _test(arm, other, measure)) is not None
            }
            corrected = holm({name: test.permutation_p for name, test in tests.items()})
            compared += [
                Compared(name, other.name, measure, test.difference.total, test, corrected[name])
                for name, test in tests.items()
            ]
    return compared


def _test(arm: ArmResult, other: ArmResult, measure: str) -> SeedTest | None:
    first, second = (found.values.get(measure, {}) for found in (arm, other))
    seeds = first.keys() & second.keys()
    if not seeds:
        return None
    return SeedTest.of({seed: first[seed] for seed in seeds}, {seed: second[seed] for seed in seeds})
