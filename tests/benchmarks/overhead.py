"""What freezing costs: `python -m tests.benchmarks.overhead`. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from neurofreeze.console import console, quiet, say, stage
from tests.benchmarks import models
from tests.benchmarks.arms import arms
from tests.benchmarks.attach import attach_seconds
from tests.benchmarks.engines import ENGINES
from tests.benchmarks.measure import Job, measure
from tests.benchmarks.models import Shape
from tests.benchmarks.tables import attach_table, memory_table, ratio, scaling_table, time_table

_SCALED = "fsdp2"
_SCALED_FRACTION = 0.075


def main() -> None:
    quiet()
    options = _options()
    found: dict[str, Any] = {"machine": _machine(options)}
    say(json.dumps(found["machine"], indent=2))
    if "engines" in options.parts:
        found["engines"] = _with_ratios([_run(options, name, _world(options, name)) for name in options.engines])
        console.print(time_table(found["engines"], options.fractions))
        console.print(memory_table(found["engines"], options.fractions))
    if "scaling" in options.parts:
        found["scaling"] = _with_ratios([_run(options, _SCALED, world, scaling=True) for world in options.ranks])
        console.print(scaling_table(found["scaling"], _SCALED_FRACTION))
    if "attach" in options.parts:
        layers = 2 if options.quick else models.LLAMA_2_7B.layers
        with stage(f"attaching to a 7B shape of {layers} layers"):
            found["attach"] = attach_seconds(_SCALED_FRACTION, layers)
        say(json.dumps({k: v for k, v in found["attach"].items() if k != "profiled"}))
        console.print(attach_table(found["attach"]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _options() -> argparse.Namespace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limit = torch.cuda.device_count() if device == "cuda" else 8
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overhead", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=("engines", "scaling", "attach"), help="default: all")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="default: all; --quick: plain fsdp2")
    parser.add_argument("--fractions", nargs="+", type=float, help="of all neurons; default: 0.01 0.075 0.3 0.72")
    parser.add_argument("--world", type=int, default=min(2, limit), help="ranks in the comparison of engines")
    parser.add_argument("--ranks", nargs="+", type=int, help=f"numbers of ranks of {_SCALED}; default: 1 2 4 8")
    parser.add_argument(
        "--steps", type=int, help="timed steps of each arm; default: 8 on a CPU (6 in scaling), 40 on a GPU"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model for seconds, to see that all of it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every step's seconds here")
    options = parser.parse_args()
    quick = options.quick
    options.device = device
    options.parts = options.parts or ["engines", "scaling", "attach"]
    options.engines = options.engines or (["plain", "fsdp2"] if quick else list(ENGINES))
    # Nothing frozen is compared with nothing frozen in any case.
    options.fractions = [f for f in options.fractions or ([0.075] if quick else [0.01, 0.075, 0.3, 0.72]) if f]
    options.ranks = options.ranks or [n for n in ((1, 2) if quick else (1, 2, 4, 8)) if n <= limit]
    options.scaling_steps = options.steps or (4 if quick else 40 if device == "cuda" else 6)
    options.steps = options.steps or (4 if quick else 40 if device == "cuda" else 8)
    options.shape = models.QUICK if quick else models.GPU if device == "cuda" else models.CPU
    if max(options.world, *options.ranks) > limit:
        parser.error(f"at most {limit} ranks on this machine")
    if options.steps < 2:
        parser.error("at least 2 steps")
    if not options.fractions:
        parser.error("at least one fraction above 0")
    return options


def _run(options: argparse.Namespace, engine: str, world: int, scaling: bool = False) -> dict[str, Any]:
    shape: Shape = options.shape
    # A GPU's allocator needs a step to settle and single steps are short; on a CPU single steps alternate.
    block, settle = (5, 2) if options.device == "cuda" else (1, 0)
    compared = arms([_SCALED_FRACTION], recipe=False) if scaling else arms(options.fractions)
    rounds = max(2, (options.scaling_steps if scaling else options.steps) // block)
    job = Job(engine, world, shape, compared, rounds, block, settle, options.device)
    with stage(f"{engine}, {world} rank{'s' if world > 1 else ''}, {len(compared)} arms, {rounds * block} steps each"):
        return measure(job)


def _world(options: argparse.Namespace, engine: str) -> int:
    return options.world if ENGINES[engine].distributed else 1


def _with_ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**found, "ratios": {label: vars(ratio(found, label)) for label in found["seconds"]}} for found in results]


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    cuda = options.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else cpu(),
        "threads_in_all": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "dtype": "bfloat16 with float32 masters" if cuda else "float32",
        "optimizer": "AdamW, weight decay 0.1, clipping at 1",
        **{name: version(name) for name in ("torch", "deepspeed", "transformers", "neurofreeze")},
        "model": options.shape.summary(),
    }


def cpu() -> str:
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return found[0].partition(":")[2].strip() if found else platform.machine()


if __name__ == "__main__":
    main()
