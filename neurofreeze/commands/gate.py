"""neurofreeze gate: make a calibrated gate for a model, for chat, serve and audit to put around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from neurofreeze.commands.settings import compose
from neurofreeze.config.gate import GateConfig
from neurofreeze.console import console, say

if TYPE_CHECKING:
    from neurofreeze.guard.gate import Gate


def main(overrides: Sequence[str]) -> int:
    """Fit, calibrate and save; print what is to be expected of the gate."""
    return compose("gate", overrides, _gate, "gate", needs_folder=False)


def _gate(config: GateConfig, _: Path, __: str) -> int:
    from neurofreeze.console import quiet_transformers
    from neurofreeze.data import read
    from neurofreeze.guard.loading import load_expert
    from neurofreeze.guard.making import make_gate
    from neurofreeze.guard.places import require_folder
    from neurofreeze.models.load import load_model, load_tokenizer
    from neurofreeze.models.resolve import resolve

    require_folder(config.output, "output")
    harmful, benign = (
        [example for source in sources for example in read(source, responses=False)]
        for sources in (config.harmful, config.benign)
    )
    quiet_transformers()
    folder = resolve(config.model, config.revision).folder
    expert = None if config.expert is None else load_expert(config.expert)
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    gate = make_gate(config, model, tokenizer, harmful, benign, expert)
    gate.save_pretrained(config.output)
    console.print(_table(gate))
    say(f"gate: {config.output}")
    return 0


def _table(gate: Gate) -> Table:
    found = gate.calibration
    assert found is not None
    title = f"{gate.trigger.name} x {gate.reaction.name}, on prompts that nothing was fitted on"
    table = Table("threshold", title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("benign triggered", "harmful triggered", "AUC"):
        table.add_column(heading, justify="right")
    area = f"{found.auc:.3f} ({found.auc_low:.3f} to {found.auc_high:.3f})"
    table.add_row(f"{found.threshold:.4g}", str(found.benign), str(found.harmful), area)
    return table
