"""The findings of the selective benchmark as tables."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich.table import Table

from tests.benchmarks.ratios import Ratio
from tests.benchmarks.tables import headed
from tests.benchmarks.ways import Way

_MIB = 2**20
_FULL, _LORA = Way("full").label, Way("lora").label
_FEW, _MANY = Way("selective", 0.01, rest=False).label, Way("selective", 0.28).label

# arm, what, compared with, at most
_GOALS = [
    (_FEW, "step", _FULL, 0.65),
    (_FEW, "step", _LORA, 0.95),
    (_FEW, "peak", _FULL, 0.55),
    (_FEW, "peak", _LORA, 0.80),
    (_MANY, "step", _FULL, 0.90),
    (_MANY, "neuron_optimizer", _FULL, 0.35),
]


def time_table(found: dict[str, Any]) -> Table:
    made = headed("Seconds a step", "arm", "enforced by", "trains", "step s", "/ full", "/ LoRA", "steps")
    for label in found["seconds"]:
        sizes, engine = found["sizes"].get(label), found["engines"].get(label, "")
        ratio = _step(found, label, _FULL)
        trains = f"{sizes['parameters'] / 1e6:.2f} M" if sizes else ""
        lora = str(_step(found, label, _LORA)) if _LORA in found["seconds"] else ""
        made.add_row(label, engine, trains, _seconds(found, label), str(ratio), lora, str(ratio.steps))
    return made


def memory_table(found: dict[str, Any], device: str) -> Table:
    """Peaks, and the optimizer's state: of all that trains, and of the neurons' parameters alone."""
    what = "allocated" if device == "cuda" else "resident"
    headings = ("arm", f"peak {what} MiB", "/ full", "/ LoRA", "optimizer MiB", "/ full", "of neurons MiB", "/ full")
    made = headed("Memory", *headings)
    for label, most in found["peak"].items():
        cells = [f"{most / _MIB:.0f}", _of(found, "peak", label, _FULL)]
        cells.append(_of(found, "peak", label, _LORA) if _LORA in found["peak"] else "")
        for key in ("optimizer", "neuron_optimizer"):
            cells += [f"{found['sizes'][label][key] / _MIB:.1f}", _of(found, key, label, _FULL)]
        made.add_row(label, *cells)
    return made


def inference_table(found: dict[str, Any]) -> Table:
    made = headed("Forward passes without gradients", "model", "seconds", "/ base")
    for label in found["seconds"]:
        made.add_row(label, _seconds(found, label), str(_step(found, label, "base")))
    return made


def goal_table(found: dict[str, Any]) -> Table:
    made = headed("Goals", "arm", "what", "at most", "found")
    for label, what, other, most in _GOALS:
        if label in found["sizes"] and other in found["sizes"]:
            value = str(_step(found, label, other)) if what == "step" else _of(found, what, label, other)
            name = "optimizer memory of neurons" if what == "neuron_optimizer" else f"{what} / {other}"
            made.add_row(label, name, f"{most:.2f}", value)
    return made


def crossover_table(found: dict[float, dict[str, Any]]) -> Table:
    """Selective layers against a mask: which is faster, and which needs less memory, from which fraction on."""
    made = headed(
        "Masks (nf.freeze) and selective layers; everything that is not frozen trains",
        *(
            "frozen",
            "mask / full",
            "selective / full",
            "selective / mask",
            "peak, mask / full",
            "peak, selective / full",
        ),
    )
    for fraction, at in found.items():
        mask, selective = (label for label in at["sizes"] if label != _FULL)
        made.add_row(
            f"{float(fraction):.0%}",
            *(str(_step(at, *pair)) for pair in ((mask, _FULL), (selective, _FULL), (selective, mask))),
            *(_of(at, "peak", label, _FULL) for label in (mask, selective)),
        )
    return made


def _step(found: dict[str, Any], label: str, other: str) -> Ratio:
    return Ratio.of(found["seconds"][label], found["seconds"][other])


def _of(found: dict[str, Any], what: str, label: str, other: str) -> str:
    if what == "peak":
        return f"{found['peak'][label] / found['peak'][other]:.3f}"
    return f"{found['sizes'][label][what] / found['sizes'][other][what]:.3f}"


def _seconds(found: dict[str, Any], label: str) -> str:
    return f"{median(s for steps in found['seconds'][label] for s in steps):.3f}"
