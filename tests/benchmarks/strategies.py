"""`python -m tests.benchmarks.strategies MODEL`: what pruning the choice of each strategy does, and how steady it is.

For each seed the calibration sets are split into two random halves; a strategy chooses on each. Its choice on the first
half is pruned; the overlap of the two is its stability. The random control has as many neurons at every site.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from neurofreeze.console import quiet, quiet_transformers
from neurofreeze.data import read
from neurofreeze.evaluation.pruning import Pruned, prune
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.models.resolve import resolve
from neurofreeze.strategies import NeuronScores, make, select
from neurofreeze.strategies.stability import Overlap, halves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="an aligned model: a folder, a hub id or a short name")
    parser.add_argument("--strategies", nargs="+", required=True)
    parser.add_argument("--fraction", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calibration", type=int, default=48, help="prompts of each calibration set")
    parser.add_argument("--limit", type=int, default=16, help="prompts of each evaluation set")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet()
    quiet_transformers()
    folder = resolve(options.model, None).folder
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    sets = {
        "safety": read("bundled:harmful/calibration", limit=options.calibration),
        "utility": read("bundled:instructions/calibration", limit=options.calibration),
    }
    evaluation = [
        read("bundled:harmful/evaluation", responses=False, limit=options.limit),
        read("bundled:instructions/evaluation", limit=options.limit),
    ]
    whole = prune(model, tokenizer, None, *evaluation)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name in options.strategies:
            started = time.process_time()
            first, second = (
                choose(model, tokenizer, name, half, options.fraction, seed=2 * seed + number)
                for number, half in enumerate(halves(sets, seed))
            )
            seconds = (time.process_time() - started) / 2
            chosen = prune(model, tokenizer, first, *evaluation)
            control = prune(model, tokenizer, NeuronMask.random_like(first, seed), *evaluation)
            rows.append({"strategy": name, "seed": seed, "neurons": first.count, "seconds": seconds,
                         **effect("chosen", chosen, whole), **effect("random", control, whole),
                         "overlap": Overlap.of(first, second).jaccard, "chance": Overlap.of(first, second).by_chance,
                         })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    Console(width=120).print(table(rows, whole))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def choose(model: Any, tokenizer: Any, name: str, sets: dict[str, Any], fraction: float, seed: int) -> NeuronMask:
    """The same share of neurons of each kind by every strategy, so that only the ranking differs."""
    strategy = make(name, {"seed": seed} if name == "random" else {})

    def score(examples: Any) -> NeuronScores:
        return select(model, tokenizer, examples, strategy, max_length=128)

    if strategy.sets == ("safety",) and name != "margin":
        # A score on one set alone finds what the model needs for anything; the difference is what papers use.
        safety, utility = score({"safety": sets["safety"]}), score({"safety": sets["utility"]})
        return (safety.standardized() - utility.standardized()).top(fraction)
    return score(sets).top(fraction)


def effect(who: str, pruned: Pruned, whole: Pruned) -> dict[str, float]:
    return {
        f"{who} margin": pruned.margin_drop(whole).value,
        f"{who} loss": pruned.loss_rise(whole).value,
    }


def table(rows: list[dict[str, Any]], whole: Pruned) -> Table:
    found = Table(
        "strategy",
        title=f"Pruned; the whole model has margin {np.mean(whole.margins):.2f} and loss {np.mean(whole.losses):.3f}",
        caption="mean and, in brackets, smallest to largest over seeds; nats; CPU seconds for one choice",
    )
    for column in ("margin falls by", "random", "loss rises by", "random", "overlap of halves", "chance", "CPU s"):
        found.add_column(column, justify="right")
    for name in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == name]
        keys = ("chosen margin", "random margin", "chosen loss", "random loss", "overlap", "chance", "seconds")
        found.add_row(name, *(spread([row[key] for row in own]) for key in keys))
    return found


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
