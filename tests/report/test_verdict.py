"""The first paragraph says what happened, also when it went badly."""

from __future__ import annotations

from dataclasses import replace

from neurofreeze.evaluation.statistics import PairedTest
from neurofreeze.report.content import Arm, Comparison
from neurofreeze.report.verdict import verdict

from .contents import content, measurements, rate


def words(**changes: object) -> str:
    return " ".join(verdict(content(**changes))).replace("\N{NO-BREAK SPACE}", " ")


def test_refusals_kept_by_each_arm() -> None:
    text = words()
    assert "Before fine-tuning the model refused 58 of 64" in text
    assert "“No freezing” refused 21 of 64 (36 % of the start)" in text
    assert "“Safety neurons frozen” refused 49 of 64 (84 % of the start)" in text
    assert "This is one run with one seed (17)" in text


def test_a_gain_a_loss_and_chance_are_told_apart() -> None:
    def reading(first: str, second: str, test: PairedTest) -> str:
        return words(comparisons=[Comparison(first, second, "harmful requests", test)])

    assert "p = 0.035): a gain that" in reading("safety", "none", PairedTest(12, 3, 0.03515625))
    assert "p = 0.035): a loss that" in reading("safety", "none", PairedTest(3, 12, 0.03515625))
    assert "p = 1.00): chance over prompts could" in reading("safety", "none", PairedTest(2, 2, 1.0))
    assert "“Safety neurons frozen” alone refused 12" in reading("none", "safety", PairedTest(3, 12, 0.03515625))


def test_tests_on_look_alikes_are_no_gain_in_safety() -> None:
    assert "a gain" not in words(
        comparisons=[Comparison("safety", "none", "benign look-alikes", PairedTest(9, 0, 0.004))]
    )


def test_degenerate_completions_are_warned_of() -> None:
    broken = replace(measurements(60, 40, 0.0, 9.0), degenerate=rate(50, 104))
    assert "50 of its 104 completions are empty or repeat themselves" in words(arms=[Arm("safety", "Safety", broken)])
    assert "completions" not in words()


def test_bits_that_were_not_compared_are_not_called_intact() -> None:
    arm = replace(content().arms[-1], verified_changed=None)
    text = words(arms=[arm])
    assert "were not verified" in text
    assert "bit-identical" not in text
    assert "bit-identical" in words()
    assert "bit-identical" not in words(arms=[*content().arms[:3], replace(arm, verified_changed=2)])


def test_a_start_that_refused_nothing_has_no_share_to_keep() -> None:
    arms = [
        Arm("aligned", "Start", measurements(0, 0, 0.0, 1.0)),
        Arm("none", "None", measurements(1, 0, 0.0, 1.0)),
    ]
    assert "of the start" not in words(arms=arms)


def test_arms_of_unequal_length_are_said_to_be() -> None:
    start, plain, *frozen = content().arms
    longer = [replace(arm, losses=[(step, 1.0) for step in range(1, 81)]) for arm in frozen]
    assert "equally long" not in words()
    assert (
        "not trained equally long: “No freezing” for 40 steps, “Random neurons, same number” for 80 steps and “Safety "
        "neurons frozen” for 80 steps" in words(arms=[start, plain, *longer])
    )
