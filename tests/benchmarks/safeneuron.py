"""`python -m tests.benchmarks.safeneuron`: refusals after pruning re-identified neurons, SafeNeuron beside plain DPO.

Each seed is a whole `neurofreeze run method=safeneuron` of three rounds (T0 to T2); both arms train on the same pairs
in the same order. After every round the safety neurons are found anew and pruned, and as many random ones.
Finished stages are reused, so that a run which was stopped goes on, and one that is not finished gives what it has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from neurofreeze.cli import main as neurofreeze
from neurofreeze.evaluation.statistics import Rate

ROUNDS = 3
MODELS = ("start", *(f"{arm}-T{number}" for number in range(ROUNDS) for arm in ("dpo", "safeneuron")))
STATES = ("whole", "safety neurons", "random, same number")


class Row(NamedTuple):
    """One model of one seed in one state; margin and loss are means over prompts, in nats."""

    seed: int
    model: str
    state: str
    neurons: int
    frozen: int
    refused: Rate
    over_refused: Rate
    degenerate: Rate
    margin: float
    loss: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a folder, a hub id or a short name")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--show", action="store_true", help="run nothing, show what is there")
    parser.add_argument("settings", nargs="*", help="more settings of the runs, key=value")
    options = parser.parse_intermixed_args()
    rows: list[Row] = []
    for seed in options.seeds:
        folder = options.folder / str(seed)
        if not options.show:
            own = [f"model={options.model}", f"seed={seed}", f"hydra.run.dir={folder.resolve()}"]
            rounds = [f"method.safeneuron.rounds={ROUNDS}", "method.safeneuron.prune_rounds=true"]
            if code := neurofreeze(["run", "method=safeneuron", *rounds, *own, *options.settings]):
                raise SystemExit(code)
        rows += rows_of(folder, seed)
    Console(width=150).print(table(rows))


def rows_of(folder: Path, seed: int) -> Iterator[Row]:
    """What a run has measured so far."""
    for model in MODELS:
        found = _result(folder, f"prune-{model}")
        frozen = _result(folder, f"train-{model}").get("frozen_neurons", 0)
        for state in STATES if found else ():
            outcomes = found["states"][state]
            yield Row(
                seed,
                model,
                state,
                found["neurons"],
                frozen,
                Rate.of(outcomes["refused"]),
                Rate.of(outcomes["over_refused"]),
                Rate.of(outcomes["degenerate"]),
                float(np.mean(outcomes["margins"])),
                float(np.mean(outcomes["general_losses"])),
            )


def table(rows: list[Row]) -> Table:
    """One row a seed and model, each figure whole / without safety neurons / without random ones."""
    found = Table("seed", "model", title="whole / without safety neurons / without as many random ones")
    columns = ("frozen", "pruned", "harmful refused", "look-alikes refused", "degenerate", "margin", "general loss")
    for column in columns:
        found.add_column(column, justify="right")
    for seed, model in dict.fromkeys((row.seed, row.model) for row in rows):
        own = [row for row in rows if (row.seed, row.model) == (seed, model)]
        found.add_row(
            str(seed),
            model,
            f"{own[0].frozen:,}",
            f"{own[0].neurons:,}",
            _counts([row.refused for row in own]),
            _counts([row.over_refused for row in own]),
            _counts([row.degenerate for row in own]),
            " / ".join(f"{row.margin:.2f}" for row in own),
            " / ".join(f"{row.loss:.2f}" for row in own),
            end_section=model == MODELS[-1],
        )
    return found


def _counts(rates: list[Rate]) -> str:
    return f"{' / '.join(str(rate.count) for rate in rates)} of {rates[0].total}"


def _result(folder: Path, stage: str) -> dict[str, Any]:
    """What a stage left; nothing if it is not complete."""
    path = folder / "stages" / f"{stage}.json"
    return json.loads(path.read_text(encoding="utf-8"))["result"] if path.is_file() else {}


if __name__ == "__main__":
    main()
