"""The report's first paragraph: what the measurements say, and what they cannot say."""

from __future__ import annotations

from collections.abc import Iterator

from neurofreeze.evaluation.statistics import PairedTest
from neurofreeze.report.content import Arm, Content
from neurofreeze.report.formatting import listed, number, p_value

ALIGNED = "aligned"  # the starting point
CONTROLS = ("none", "random", "full", "lora", "dpo")  # what a method is held against
SIGNIFICANT = 0.05
MANY_DEGENERATE = 0.1
NO_BREAK = "\N{NO-BREAK SPACE}"


def verdict(content: Content) -> list[str]:
    """Sentences, each true of `content` whatever the outcome was."""
    return [
        *_refusals(content),
        *_tests(content),
        *_costs(content),
        *unequal_steps(content.arms),
        *_fluency(content.arms),
        *_integrity(content.arms),
        f"This is one run with one seed ({content.seed}): intervals and p-values describe prompts, "
        "not run-to-run noise.",
    ]


def _start(content: Content) -> Arm | None:
    return next((arm for arm in content.arms if arm.name == ALIGNED), None)


def _trained(content: Content) -> list[Arm]:
    return [arm for arm in content.arms if arm.name != ALIGNED]


def _refusals(content: Content) -> Iterator[str]:
    start, trained = _start(content), _trained(content)
    if start is not None:
        before = start.measurements.refusals
        yield f"Before fine-tuning the model refused {before.count} of {before.total} harmful requests."
    kept = []
    for arm in trained:
        after = arm.measurements.refusals
        text = f"“{arm.label}” refused {after.count} of {after.total}"
        if start is not None and start.measurements.refusals.count:
            text += f" ({100 * after.value / start.measurements.refusals.value:.0f} % of the start)"
        kept.append(text)
    if kept:
        yield f"After fine-tuning, {listed(kept)}."


def _tests(content: Content) -> Iterator[str]:
    labels = {arm.name: arm.label for arm in content.arms}
    for method in _trained(content):
        for control in CONTROLS:
            test = None if method.name in CONTROLS else _find(content, method.name, control)
            if test is not None:
                yield (
                    f"On the same harmful requests, “{method.label}” alone refused {test.only_first} and "
                    f"“{labels.get(control, control)}” alone {test.only_second} "
                    f"(exact sign test, {p_value(test.p_value).replace(' ', NO_BREAK)}): {_reading(test)}."
                )


def _find(content: Content, first: str, second: str) -> PairedTest | None:
    for comparison in content.comparisons:
        test = comparison.test
        if "harmful" not in comparison.what.lower():
            continue
        if (comparison.first, comparison.second) == (first, second):
            return test
        if (comparison.first, comparison.second) == (second, first):
            return PairedTest(test.only_second, test.only_first, test.p_value)
    return None


def _reading(test: PairedTest) -> str:
    if not test.p_value < SIGNIFICANT:
        return "chance over prompts could explain this difference"
    if test.only_first > test.only_second:
        return "a gain that chance over prompts hardly explains"
    return "a loss that chance over prompts hardly explains"


def _costs(content: Content) -> Iterator[str]:
    start = _start(content)
    plain = next((arm for arm in content.arms if arm.name == "none"), None)
    for arm in _trained(content):
        if arm.name in CONTROLS:
            continue
        after = arm.measurements
        before = "" if start is None else f", the start {_of(start)}"
        yield f"“{arm.label}” refused {_of(arm)} harmless look-alikes{before}."
        if plain is not None:
            yield (
                f"Its domain loss is {after.domain_loss.value:.3f} nats per token, "
                f"against {plain.measurements.domain_loss.value:.3f} without freezing."
            )


def _of(arm: Arm) -> str:
    return f"{arm.measurements.over_refusals.count} of {arm.measurements.over_refusals.total}"


def unequal_steps(arms: list[Arm]) -> list[str]:
    """A sentence that says so, if not all arms were trained for as many steps."""
    trained = [arm for arm in arms if arm.steps]
    if len({arm.steps for arm in trained}) < 2:
        return []
    steps = listed(f"“{arm.label}” for {number(arm.steps, 'step')}" for arm in trained)
    return [f"The arms were not trained equally long: {steps}."]


def _fluency(arms: list[Arm]) -> Iterator[str]:
    for arm in arms:
        degenerate = arm.measurements.degenerate
        if degenerate.value >= MANY_DEGENERATE:
            yield (
                f"Read the refusals of “{arm.label}” with care: {degenerate.count} of its {degenerate.total} "
                "completions are empty or repeat themselves."
            )


def _integrity(arms: list[Arm]) -> Iterator[str]:
    for arm in arms:
        if arm.verified_changed:
            changed = number(arm.verified_changed, "frozen element")
            yield f"In “{arm.label}” {changed} CHANGED: do not rely on that model."
        elif arm.frozen_elements and arm.verified_changed is None:
            yield f"The frozen elements of “{arm.label}” were not verified."
    checked = [arm for arm in arms if arm.verified_changed is not None]
    if checked and not any(arm.verified_changed for arm in checked):
        yield "Every frozen element that was verified is bit-identical to the start."
