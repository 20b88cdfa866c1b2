"""Ways of training, measured: their steps in turn in one process, the memory of each in a process of its own."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

import neurofreeze as nf
from neurofreeze.console import quiet
from neurofreeze.testing import process_context
from tests.benchmarks import models
from tests.benchmarks.memory import peak, reset_peak
from tests.benchmarks.ratios import turns
from tests.benchmarks.ways import Setting, Training, Way

AGAIN = "again"  # the first of the arms once more, for the noise
_WARM_UP = 2
_WEIGHED_STEPS = 3


@dataclass(frozen=True)
class Rounds:
    """In each of `number` rounds every arm takes `settle` steps that do not count and `block` that do."""

    number: int
    block: int
    settle: int
    cpu_time: bool = False


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a new process."""
    with ProcessPoolExecutor(1, mp_context=process_context()) as pool:
        return pool.submit(function, *arguments).result()


def train(setting: Setting, compared: list[Way], rounds: Rounds) -> dict[str, Any]:
    """Seconds of each step, sizes and engine of each way, all trained in turn by this process, and then checked."""
    quiet()
    trainings = {way.label: Training(way, setting) for way in compared}
    ids = setting.ids()
    steps = {label: partial(training.step, ids) for label, training in trainings.items()}
    seconds = _alternate({**steps, AGAIN: steps[compared[0].label]}, setting, rounds)
    for training in trainings.values():
        training.check()
    return {
        "seconds": seconds,
        "sizes": {label: training.sizes() for label, training in trainings.items()},
        "engines": {label: training.engine() for label, training in trainings.items()},
    }


def weigh(setting: Setting, way: Way) -> int:
    """Bytes at the peak of a few steps of training, above what the process had before there was a model.

    On a CPU they are resident bytes, so a small model trains first: code that is loaded, and what libraries keep for
    themselves, is not counted.
    """
    quiet()
    device = torch.device(setting.device)
    _steps(replace(setting, shape=models.QUICK), way)
    gc.collect()
    reset_peak(device)
    before = peak(device)
    return max(1, _steps(setting, way) - before)  # 1: a quick run may find all it needs free


def infer(setting: Setting, way: Way, rounds: Rounds) -> dict[str, Any]:
    """Seconds of forward passes of the base model and of one that was selective, trained and merged."""
    quiet()
    base = setting.model().eval()
    training = Training(way, setting)
    ids = setting.ids()
    training.step(ids)
    merged = nf.merge(training.model).eval()
    require_ordinary(merged, base)

    def of(model: Any) -> Callable[[], None]:
        forward = torch.compile(model) if setting.compiled else model
        return torch.no_grad()(lambda: forward(input_ids=ids))  # type: ignore[no-any-return]

    base_pass = of(base)
    return {"seconds": _alternate({"base": base_pass, "merged": of(merged), AGAIN: base_pass}, setting, rounds)}


def require_ordinary(merged: Any, base: Any) -> None:
    """The merged model must be built as the base is, or it may compute more than the base does."""
    kinds = [{name: type(module) for name, module in model.named_modules()} for model in (merged, base)]
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (merged, base)]
    if kinds[0] != kinds[1] or shapes[0] != shapes[1]:
        raise RuntimeError("the merged model is not built as the base model is: something selective is left in it")


def _steps(setting: Setting, way: Way) -> int:
    training = Training(way, setting)
    device = torch.device(setting.device)
    reset_peak(device)
    for _ in range(_WEIGHED_STEPS):
        training.step(setting.ids())
    return peak(device)


def _alternate(arms: dict[str, Callable[[], None]], setting: Setting, rounds: Rounds) -> dict[str, list[list[float]]]:
    for step in arms.values():
        for _ in range(_WARM_UP):
            step()
    gc.collect()
    gc.freeze()
    labels = list(arms)
    seconds: dict[str, list[list[float]]] = {label: [] for label in labels}
    for number in range(rounds.number):
        for label in (labels[i] for i in turns(len(labels), number)):
            gc.collect()
            gc.disable()
            for _ in range(rounds.settle):
                arms[label]()
            seconds[label].append([_time(arms[label], setting, rounds) for _ in range(rounds.block)])
            gc.enable()
    return seconds


def _time(step: Callable[[], None], setting: Setting, rounds: Rounds) -> float:
    clock = time.process_time if rounds.cpu_time else time.perf_counter
    _synchronize(setting)
    start = clock()
    step()
    _synchronize(setting)
    return clock() - start


def _synchronize(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()
