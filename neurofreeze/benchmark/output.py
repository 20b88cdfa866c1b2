"""What a suite leaves for a reader: results.json, table.md and a figure for each fine-tuning set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neurofreeze._version import __version__
from neurofreeze.benchmark.figure import figure
from neurofreeze.benchmark.gather import SetResult
from neurofreeze.benchmark.plan import Plan
from neurofreeze.benchmark.table import as_markdown, as_table, notes, rows_of_arms, rows_of_tests
from neurofreeze.config.benchmark import SuiteConfig
from neurofreeze.console import console, say
from neurofreeze.files import write_atomically
from neurofreeze.report.formatting import strict
from neurofreeze.tracking.redaction import redact


def show(results: Sequence[SetResult], suite: SuiteConfig) -> None:
    """Print the tables."""
    for found in results:
        say(f"\n{found.name}")
        console.print(as_table(*rows_of_arms(found), names=1))
        console.print(as_table(*rows_of_tests(found.compared), names=3))
        for note in notes(found, suite.reach):
            say(note)


def write(results: Sequence[SetResult], plan: Plan, command: str, folder: Path) -> list[Path]:
    """Write all files, each whole or not at all; returns their paths."""
    command = redact(command)
    text = f"`{command}`\n"
    files = {"results.json": (json.dumps(_content(results, plan, command), indent=1, allow_nan=False) + "\n").encode()}
    for found in results:
        text += (
            f"\n## {found.name}\n\n{as_markdown(*rows_of_arms(found))}\n{as_markdown(*rows_of_tests(found.compared))}"
        )
        text += "".join(f"\n{note}\n" for note in notes(found, plan.suite.reach))
        files[f"figure-{found.name}.png"] = figure(found)
    files["table.md"] = text.encode()
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def _content(results: Sequence[SetResult], plan: Plan, command: str) -> dict[str, Any]:
    return {
        "version": __version__,
        "command": command,
        "suite": redact(asdict(plan.suite)),
        "settings": {name: redact(asdict(config)) for name, config in plan.bases.items()},
        "sets": [strict(asdict(found)) for found in results],
    }
