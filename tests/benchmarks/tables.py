"""The benchmark's findings as tables."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich.table import Table

from tests.benchmarks.arms import Arm
from tests.benchmarks.ratios import Ratio

_MIB = 2**20


def time_table(results: list[dict[str, Any]], fractions: list[float]) -> Table:
    """One row for each engine and fraction; the first row of an engine compares it with itself."""
    table = headed("Seconds a step, with / without freezing", "engine", "frozen", "freezer", "recipe", "steps")
    for result in results:
        again = ratio(result, "again")
        table.add_row(_name(result), "0 %", str(again), "", str(again.steps))
        for fraction in fractions:
            ours, recipe = ratio(result, Arm("frozen", fraction).label), Arm("recipe", fraction).label
            other = str(ratio(result, recipe)) if recipe in result["seconds"] else "hooks never run"
            table.add_row("", f"{fraction:.1%}", str(ours), other, str(ours.steps))
        table.add_section()
    return table


def memory_table(results: list[dict[str, Any]], fractions: list[float]) -> Table:
    """MiB on the rank with most: held between steps + added for a moment in a step; and the peak with / without."""
    what = "allocated" if results[0]["device"] == "cuda" else "resident"
    title = f"MiB held between steps + in a step; peak {what} memory with / without freezing"
    table = headed(title, "engine", "frozen", "freezer MiB", "peak", "recipe MiB", "peak")
    for result in results:
        table.add_row(_name(result), "0 %", "", _peak(result, "again"), "", "")
        for fraction in fractions:
            ours, recipe = Arm("frozen", fraction).label, Arm("recipe", fraction).label
            other = (_bytes(result, recipe), _peak(result, recipe)) if recipe in result["seconds"] else ("", "")
            table.add_row("", f"{fraction:.1%}", _bytes(result, ours), _peak(result, ours), *other)
        table.add_section()
    return table


def scaling_table(results: list[dict[str, Any]], fraction: float) -> Table:
    first = results[0]
    steps = ratio(first, "off").steps
    title = f"{first['engine']}, {fraction:.1%} frozen, as the number of ranks grows; {steps} steps of each arm"
    table = headed(title, "ranks", "step s", "off / off", "frozen / off", "attach s")
    frozen = Arm("frozen", fraction).label
    for result in results:
        seconds = median(s for steps in result["seconds"]["off"] for s in steps)
        table.add_row(
            str(result["world"]),
            f"{seconds:.3f}",
            str(ratio(result, "again")),
            str(ratio(result, frozen)),
            f"{median(result['attach_seconds'][frozen]):.3f}",
        )
    return table


def attach_table(found: dict[str, Any]) -> Table:
    title = f"freeze() on one of {found['ranks']} FSDP2 ranks: {found['attach_seconds']:.2f} s"
    table = headed(title, "step", "seconds, profiled")
    for step, seconds in found["profiled"].items():
        table.add_row(step, f"{seconds:.3f}")
    table.add_section()
    table.add_row("check() afterwards", f"{found['check_seconds']:.3f}")
    return table


def ratio(result: dict[str, Any], label: str) -> Ratio:
    return Ratio.of(result["seconds"][label], result["seconds"]["off"])


def _peak(result: dict[str, Any], label: str) -> str:
    return f"{result['peak'][label] / result['peak']['off']:.3f}"


def _bytes(result: dict[str, Any], label: str) -> str:
    found = result["bytes"][label]
    return f"{found['held'] / _MIB:.3f} + {found['copied'] / _MIB:.3f}"


def _name(result: dict[str, Any]) -> str:
    return f"{result['engine']} x{result['world']}"


def headed(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table
