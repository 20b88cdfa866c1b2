from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from neurofreeze.benchmark.cell import Cell
from neurofreeze.benchmark.figure import figure
from neurofreeze.benchmark.gather import AT_LOSS, REFUSED, SetResult, gather
from neurofreeze.benchmark.output import write
from neurofreeze.benchmark.plan import Place, Plan
from neurofreeze.benchmark.suite import Outcome
from neurofreeze.benchmark.table import as_markdown, notes, rows_of_arms, rows_of_tests
from neurofreeze.config.benchmark import SuiteConfig

ARMS = ("none", "frozen", "slow")
# Of 10 requests, refused at the middle and at the end, by seed; and losses there.
REFUSALS = {"none": [(5, 1), (6, 2), (4, 0)], "frozen": [(8, 6), (9, 8), (7, 7)], "slow": [(9, 8), (9, 9), (9, 7)]}
LOSSES = {"none": (2.0, 1.0), "frozen": (2.2, 1.4), "slow": (2.6, 1.8)}
START = 3.0


def result(refused: tuple[int, int], losses: tuple[float, float], degenerate: int = 0, **more: Any) -> dict[str, Any]:
    points = [
        {"step": step, "loss": loss, "refused": [place < count for place in range(10)], "degenerate": degenerate}
        for step, loss, count in zip((8, 16), losses, refused, strict=True)
    ]
    end = {"elsewhere": [], "over_refused": [True, False], "general_loss": 1.5, "margin": 2.0}
    return {"points": points, "end": end, **more}


def gathered(left_out: tuple[tuple[str, int], ...] = (), degenerate: int = 0, **settings: Any) -> SetResult:
    suite = SuiteConfig(arms={arm: {} for arm in ARMS}, seeds=3, **settings)
    unused: Any = None
    results: list[tuple[Cell, dict[str, Any]]] = []
    for arm in ARMS:
        more = {"frozen_neurons": 3, "neurons": 4} if arm == "frozen" else {}
        for seed in range(3):
            if (arm, seed) not in left_out:
                cell = Cell(Place("domain", seed, arm), suite, unused, unused, Path(), "", None, Path())
                results.append((cell, result(REFUSALS[arm][seed], LOSSES[arm], degenerate, **more)))
    begin = {"step": 0, "loss": START, "refused": [True] * 10, "degenerate": 0}
    starts = {"domain": {"point": begin, "end": result((0, 0), (1, 1))["end"]}}
    [found] = gather(Outcome(starts, results, {}), suite)
    return found


def test_arms_at_the_end_and_at_equal_loss() -> None:
    found = gathered()
    arms = {arm.name: arm for arm in found.arms}
    assert found.losses == {0: 1.8, 1: 1.8, 2: 1.8}  # where slow ends
    assert arms["none"].values[REFUSED] == {0: 0.1, 1: 0.2, 2: 0.0}
    for seed in range(3):
        middle, end = REFUSALS["none"][seed]
        expected = np.interp(1.8, [1.0, 2.0, START], [end / 10, middle / 10, 1.0])
        assert arms["none"].values[AT_LOSS][seed] == pytest.approx(expected)
        assert arms["slow"].values[AT_LOSS][seed] == arms["slow"].values[REFUSED][seed]
    mean = arms["frozen"].mean(REFUSED)
    assert mean is not None
    half = stats.t.ppf(0.975, 2) * stats.sem([0.6, 0.8, 0.7])
    assert (mean.value, mean.high) == pytest.approx((0.7, 0.7 + half))
    assert arms["frozen"].frozen == 0.75
    assert arms["none"].frozen is None


def test_what_else_is_measured_at_the_end() -> None:
    found = {measure: by_seed[1] for measure, by_seed in gathered(degenerate=3).arms[0].values.items()}
    del found[REFUSED], found[AT_LOSS]
    expected = {"over-refused": 0.5, "loss": 1.0, "general loss": 1.5, "margin": 2.0, "degenerate": 0.3}
    assert found == expected, "none was refused elsewhere, where nothing was asked"


def test_arms_are_compared_seed_by_seed() -> None:
    found = gathered()
    [compared] = [each for each in found.compared if (each.arm, each.measure) == ("frozen", REFUSED)]
    assert (compared.against, compared.seeds) == ("none", 3)
    assert compared.test.difference.value == pytest.approx(np.mean([0.5, 0.6, 0.7]))
    assert compared.test.permutation_p == 0.25  # 2 of 2^3 flips
    assert compared.holm == 0.5  # of two arms


def test_what_is_corrected_is_the_permutation_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REFUSALS, "none", [(5, 1), (6, 2), (4, 2)])
    monkeypatch.setitem(REFUSALS, "slow", [(9, 6), (9, 7), (9, 1)])  # 5 more, 5 more, 1 less
    [slow] = [each for each in gathered().compared if (each.arm, each.measure) == ("slow", REFUSED)]
    assert (slow.test.permutation_p, slow.test.sign_p, slow.holm) == (0.5, 1, 0.5)


def test_a_missing_seed_leaves_the_others_paired() -> None:
    found = gathered(left_out=(("frozen", 0), ("slow", 0)))
    [compared] = [each for each in found.compared if (each.arm, each.measure) == ("frozen", AT_LOSS)]
    assert compared.seeds == 2
    assert found.losses[0] == 1.0  # none is alone there
    assert {arm.name: arm.seeds for arm in found.arms} == {"none": 3, "frozen": 2, "slow": 2}


def test_an_arm_that_falls_short_is_told_and_not_read_off() -> None:
    found = gathered(reach=0.75)  # of what none learns: at a loss of 1.5
    arms = {arm.name: arm for arm in found.arms}
    assert AT_LOSS not in arms["slow"].values
    assert arms["frozen"].values[AT_LOSS][0] == pytest.approx(np.interp(1.5, [1.4, 2.2], [0.6, 0.8]))
    assert any("slow does not come down to it in 3 seeds" in note for note in notes(found, 0.75))
    assert not any("frozen does not" in note for note in notes(found, 0.75))


def test_tables_and_figure() -> None:
    found = gathered()
    text = as_markdown(*rows_of_arms(found))
    assert "| none | 3 | - | 10.0 ±24.8 |" in text
    assert "| frozen | 3 | 75 % | 70.0 ±24.8 |" in text
    assert "| start |  | - | 100.0 | - |" in text
    assert "elsewhere" not in text  # was not measured
    assert text.count("\n") == 2 + 1 + len(ARMS)
    tests = as_markdown(*rows_of_tests(found.compared))
    assert "| frozen | none | at the end | 3 | 60.0 ±24.8 | 0.25 | 0.50 |" in tests
    assert figure(found).startswith(b"\x89PNG")


def test_results_are_json_for_every_reader(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = gathered(left_out=tuple((arm, seed) for arm in ARMS for seed in (1, 2)))
    write([found], Plan.of(SuiteConfig(), []), "neurofreeze benchmark", tmp_path)
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["sets"][0]["compared"][0]["test"]["difference"]["low"] is None
    assert content["sets"][0]["arms"][0]["trajectories"]["0"][0] == [START, 1.0]
