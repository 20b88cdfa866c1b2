"""What training only some neurons saves: `python -m tests.benchmarks.selective`. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from neurofreeze.console import quiet, say, stage
from tests.benchmarks import models
from tests.benchmarks.alternate import Rounds, fresh, infer, train, weigh
from tests.benchmarks.overhead import cpu
from tests.benchmarks.selective_tables import crossover_table, goal_table, inference_table, memory_table, time_table
from tests.benchmarks.ways import Setting, Way, ways

FULL = Way("full")
MERGED = Way("selective", 0.01, rest=False)
_WIDTH = 130  # of tables, also where there is no terminal
_FROZEN = (0.05, 0.15, 0.3, 0.5, 0.72, 0.95)


def main(arguments: list[str] | None = None) -> None:
    quiet()
    options = _options(arguments)
    console = Console(width=_WIDTH, highlight=False)
    setting: Setting = options.setting
    found: dict[str, Any] = {"machine": _machine(options)}
    say(json.dumps(found["machine"], indent=2))
    if options.crossover is not None:
        found["crossover"] = _crossover(options)
        console.print(crossover_table(found["crossover"]))
    else:
        found.update(_compare(options))
        console.print(time_table(found))
        console.print(memory_table(found, setting.device))
        with stage("inference"):
            found["inference"] = fresh(infer, setting, MERGED, options.rounds)
        console.print(inference_table(found["inference"]))
        console.print(goal_table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    compared: list[Way] = options.ways
    with stage(f"{len(compared)} arms, {options.rounds.number} rounds"):
        found: dict[str, Any] = fresh(train, options.setting, compared, options.rounds)
    with stage("memory of each arm"):
        found["peak"] = {way.label: fresh(weigh, options.setting, way) for way in compared}
    return found


def _crossover(options: argparse.Namespace) -> dict[float, dict[str, Any]]:
    found = {}
    full = fresh(weigh, options.setting, FULL)
    for fraction in options.crossover:
        share = round(1 - fraction, 6)
        compared = [FULL, Way("freeze", share), Way("selective", share)]
        with stage(f"{fraction:.0%} frozen, {options.rounds.number} rounds"):
            found[fraction] = fresh(train, options.setting, compared, options.rounds)
            found[fraction]["peak"] = {way.label: fresh(weigh, options.setting, way) for way in compared[1:]}
            found[fraction]["peak"][FULL.label] = full
    return found


def _options(arguments: list[str] | None) -> argparse.Namespace:
    labels = {way.label: way for way in ways()}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.selective", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that all of it works")
    parser.add_argument("--arms", nargs="+", choices=labels, metavar="ARM", help=f"default: all of {', '.join(labels)}")
    parser.add_argument("--rounds", type=int, help="default: 15; --quick: 2")
    parser.add_argument(
        "--crossover",
        nargs="*",
        type=float,
        metavar="FRACTION",
        help="instead: masks against selective layers at these frozen fractions, all else trains; "
        f"default: {' '.join(map(str, _FROZEN))}",
    )
    parser.add_argument("--compile", action="store_true", help="compile every model by torch.compile")
    parser.add_argument("--fused", action="store_true", help="AdamW(fused=True), as the Hugging Face Trainer's default")
    parser.add_argument("--cpu-time", action="store_true", help="time by CPU seconds of the process: a busy machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every step's seconds here")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = models.QUICK if options.quick else models.GPU if device == "cuda" else models.SELECTIVE
    options.setting = Setting(shape, device, options.compile, options.fused)
    # A GPU's allocator needs a step to settle and single steps are short; on a CPU single steps alternate.
    block, settle = (5, 2) if device == "cuda" else (1, 0)
    options.rounds = Rounds(options.rounds or (2 if options.quick else 15), block, settle, options.cpu_time)
    # Every ratio needs full fine-tuning.
    options.ways = [labels[label] for label in dict.fromkeys([FULL.label, *(options.arms or labels)])]
    if options.crossover == []:
        options.crossover = list(_FROZEN)
    if options.rounds.number < 2:
        parser.error("at least 2 rounds")
    return options


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    setting: Setting = options.setting
    cuda = setting.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else cpu(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "dtype": "bfloat16" if cuda else "float32",
        "compiled": setting.compiled,
        "optimizer": f"AdamW{', fused' if setting.fused else ''}, weight decay 0.1, clipping at 1",
        "clock": "CPU seconds" if options.cpu_time else "wall clock",
        **{name: version(name) for name in ("torch", "peft", "transformers", "neurofreeze")},
        "model": setting.shape.summary(),
    }


if __name__ == "__main__":
    main()
