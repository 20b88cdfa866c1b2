"""One engine in one process group: its arms take turns, and every step is timed on every rank."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from neurofreeze import NeuronMap, NeuronMask
from neurofreeze.console import quiet
from neurofreeze.distributed import gather
from neurofreeze.testing import run_distributed_test
from tests.benchmarks.arms import Arm, attach
from tests.benchmarks.engines import ENGINES, Training
from tests.benchmarks.memory import peak, reset_peak
from tests.benchmarks.models import Shape
from tests.benchmarks.ratios import turns

_WARM_UP = 2
_TIMEOUT = 3600.0


@dataclass(frozen=True)
class Job:
    """Which engine to measure, at which size, and for how long.

    In each of `rounds` rounds every arm is attached, takes `settle` steps that do not count and `block` that do.
    """

    engine: str
    world: int
    shape: Shape
    arms: list[Arm]
    rounds: int
    block: int
    settle: int
    device: str


def measure(job: Job) -> dict[str, Any]:
    """Run a job on `job.world` new processes; what they found, as JSON values."""
    backend = "nccl" if job.device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        run_distributed_test(_on_rank, job.world, backend, (job, str(result)), _TIMEOUT)
        found: dict[str, Any] = json.loads(result.read_text())
    return found


def _on_rank(job: Job, result: str) -> None:
    quiet()
    threads = max(1, len(os.sched_getaffinity(0)) // job.world)
    torch.set_num_threads(threads)
    device = torch.device(job.device, dist.get_rank()) if job.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    found = _Bench(job, device).run()
    if dist.get_rank() == 0:
        Path(result).write_text(json.dumps({**asdict(job), "threads": threads, **found}))


class _Bench:
    def __init__(self, job: Job, device: torch.device) -> None:
        self.job = job
        self.device = device
        self.kind = ENGINES[job.engine]
        self.training: Training = self.kind.build(job.shape, device)
        self.map = NeuronMap.of(job.shape.config())
        fractions = sorted({arm.fraction for arm in job.arms if arm.fraction})
        self.masks = {fraction: NeuronMask.random(self.map, fraction, seed=1) for fraction in fractions}
        generator = torch.Generator().manual_seed(dist.get_rank())
        self.ids = torch.randint(0, job.shape.vocabulary, (1, job.shape.tokens), generator=generator).to(device)

    def run(self) -> dict[str, Any]:
        for _ in range(_WARM_UP):
            self.training.step(self.ids)
        weights = {arm.label: self._weigh(arm) for arm in self.job.arms}
        # Where the recipe's hooks never run there is nothing to time: it freezes nothing.
        arms = [arm for arm in self.job.arms if arm.kind != "recipe" or weights[arm.label]["hook_calls"]]
        gc.collect()
        gc.freeze()
        seconds: dict[str, list[list[float]]] = defaultdict(list)
        attaching: dict[str, list[float]] = defaultdict(list)
        peaks: dict[str, int] = defaultdict(int)
        for number in range(self.job.rounds):
            for arm in (arms[i] for i in turns(len(arms), number)):
                taken, attach_seconds, most = self._block(arm)
                seconds[arm.label].append(taken)
                attaching[arm.label].append(attach_seconds)
                peaks[arm.label] = max(peaks[arm.label], most)
        return {
            "ran": weights[next(arm.label for arm in arms if arm.kind == "frozen")]["engine"],
            "bytes": weights,
            "seconds": _largest(dict(seconds)),
            "attach_seconds": _largest(dict(attaching)),
            "peak": _largest(dict(peaks)),
            "frozen_elements": {fraction: self.map.elements(mask.bits) for fraction, mask in self.masks.items()},
        }

    def _weigh(self, arm: Arm) -> dict[str, Any]:
        with attach(arm, self.kind, self.training, self.masks.get(arm.fraction), weigh=True) as attached:
            self.training.step(self.ids)
        found = {"held": attached.held, "copied": attached.copied, "hook_calls": attached.hook_calls}
        return {"engine": attached.engine, **_largest(found)}

    def _block(self, arm: Arm) -> tuple[list[float], float, int]:
        """Seconds of each step, seconds of attaching, peak bytes; all of this rank."""
        gc.collect()
        gc.disable()
        dist.barrier()
        start = time.perf_counter()
        with attach(arm, self.kind, self.training, self.masks.get(arm.fraction)):
            attaching = time.perf_counter() - start
            for _ in range(self.job.settle):
                self.training.step(self.ids)
            reset_peak(self.device)
            taken = [self._time_step() for _ in range(self.job.block)]
            most = peak(self.device)
        gc.enable()
        return taken, attaching, most

    def _time_step(self) -> float:
        self._synchronize()
        dist.barrier()
        self._synchronize()
        start = time.perf_counter()
        self.training.step(self.ids)
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _largest(values: Any) -> Any:
    """The largest of each number over all ranks, in nested dicts and lists of numbers. Collective."""
    return _merge(gather(values))


def _merge(ranks: list[Any]) -> Any:
    first = ranks[0]
    if isinstance(first, dict):
        return {key: _merge([values[key] for values in ranks]) for key in first}
    if isinstance(first, list):
        return [_merge(list(values)) for values in zip(*ranks, strict=True)]
    return max(ranks)
