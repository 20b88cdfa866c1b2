"""The table of arms and the paired tests for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from neurofreeze.evaluation.statistics import Mean
from neurofreeze.report.content import WHOLE, Arm, Content
from neurofreeze.report.formatting import fraction, half_width, number, p_value, rate_interval, share
from neurofreeze.report.verdict import unequal_steps
from neurofreeze.strategies.stability import mean


def arms_table(content: Content) -> Table:
    """One row an arm, intervals under the figures; fits 80 columns, which is what a pipe gets."""
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 1, 0), pad_edge=False, show_edge=False, caption_justify="left",
        title=Text(f"{content.model}, seed {content.seed}"), title_justify="left",
        caption="95 % intervals over prompts of one run: Wilson for counts, Student t for means. "
        "Losses in nats per token, margin in nats.",
    )  # fmt: skip
    table.add_column("arm", min_width=10, overflow="fold")
    for name in (
        "harmful\nrefused",
        "benign\nrefused",
        "margin",
        "domain\nloss",
        "general\nloss",
        "degen-\nerate",
        "frozen",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    unequal = bool(unequal_steps(content.arms))
    for arm in content.arms:
        table.add_row(*_row(arm, content.total_neurons, unequal and arm.steps > 0))
    return table


def robustness_table(content: Content) -> Table:
    """One row a model and what was pruned of it, intervals under the figures."""
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, caption_justify="left",
        title=Text("refusals without each model's own safety neurons"), title_justify="left",
        caption="95 % intervals over prompts of one run, as above. Neurons are found anew in each model.",
    )  # fmt: skip
    table.add_column("model", overflow="fold")
    table.add_column("without", overflow="fold")
    for name in ("neurons", "harmful\nrefused", "benign\nrefused", "margin", "general\nloss", "degen-\nerate"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in content.robustness:
        rates = [f"{fraction(found)}\n{rate_interval(found)}" for found in (row.refusals, row.over_refusals)]
        means = [f"{found.value:.2f}\n{half_width(found)}" for found in (row.margin, row.general_loss)]
        pruned = "nothing" if row.pruned == WHOLE else row.pruned
        cells = [row.label, pruned, f"{row.neurons:,}", *rates, *means, fraction(row.degenerate)]
        table.add_row(*map(Text, cells))
    return table


def comparisons_lines(content: Content) -> list[str]:
    """One sentence a paired test."""
    return [
        f"{c.first} against {c.second} ({c.what}): {number(c.test.only_first, 'prompt')} refused only by "
        f"{c.first}, {c.test.only_second} only by {c.second}, exact sign test {p_value(c.test.p_value)}"
        for c in content.comparisons
    ]


def choice_lines(content: Content) -> list[str]:
    """One sentence each on the search for ratios, the pruning of the choice and its stability, if they were made."""
    lines = []
    if content.search:
        lines.append(f"ratios found by pruning: {', '.join(map(str, content.search))}")
    if content.pruned:
        chosen, *random = content.pruned
        lines.append(
            f"without the chosen neurons the refusal margin falls by {chosen.margin_drop} and the loss rises by "
            f"{chosen.loss_rise}; without random ones by {_range([p.margin_drop for p in random])} and by "
            f"{_range([p.loss_rise for p in random])}, {number(len(random), 'draw')}"
        )
    if content.overlaps:
        found = mean(content.overlaps)
        lines.append(
            f"choices on halves of the calibration sets overlap by {found.jaccard:.3f}, by chance "
            f"{found.by_chance:.3f}, {number(len(content.overlaps), 'split')}"
        )
    return lines


def _range(means: list[Mean]) -> str:
    low, high = (pick(found.value for found in means) for pick in (min, max))
    return f"{low:.3f}" if len(means) == 1 else f"{low:.3f} to {high:.3f}"


def _row(arm: Arm, total_neurons: int, with_steps: bool) -> list[Text]:
    found = arm.measurements
    cells = [
        f"{arm.label}\n{number(arm.steps, 'step')}" if with_steps else arm.label,
        f"{fraction(found.refusals)}\n{rate_interval(found.refusals)}",
        f"{fraction(found.over_refusals)}\n{rate_interval(found.over_refusals)}",
        f"{found.margin.value:.2f}\n{half_width(found.margin)}",
        f"{found.domain_loss.value:.2f}\n{half_width(found.domain_loss)}",
        f"{found.general_loss.value:.2f}\n{half_width(found.general_loss)}",
        f"{fraction(found.degenerate)}\n{rate_interval(found.degenerate)}",
    ]
    return [*map(Text, cells), _frozen(arm, total_neurons)]


def _frozen(arm: Arm, total_neurons: int) -> Text:
    if not arm.frozen_neurons:
        return Text("-")
    text = Text(f"{arm.frozen_neurons:,}\n")
    if arm.verified_changed:
        return text.append("CHANGED", style="bold red")
    return text.append(share(arm.frozen_neurons, total_neurons))
