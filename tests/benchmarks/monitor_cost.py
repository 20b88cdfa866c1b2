"""`python -m tests.benchmarks.monitor_cost MODEL MASK`: tokens per second of generate with a monitor, beside without.

Both take turns on the same prompts; without a GPU it is CPU time that is measured, since other processes may run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from neurofreeze.config.monitor import DetectionConfig
from neurofreeze.console import quiet
from neurofreeze.data import read
from neurofreeze.guard.monitor import Monitor, calibrate
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_model, load_tokenizer
from tests.benchmarks.ratios import Ratio, turns
from tests.benchmarks.tables import headed

_DETECTION = DetectionConfig(false_alarm_rate=0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("mask", help="the neurons to watch, all of them")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--tokens", type=int, default=32, help="to generate")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    quiet()
    model, tokenizer = load_model(options.model).eval(), load_tokenizer(options.model)
    prompts = read("bundled:instructions/align", responses=False)
    mask = NeuronMask.from_pretrained(options.mask, model=model)
    monitor = Monitor(calibrate(model, tokenizer, prompts[:60], mask, most=mask.count), _DETECTION)
    sites = sum(bits.any() for bits in mask.bits.values())
    table = headed(
        f"{mask.count} neurons at {sites} sites, {options.tokens} tokens, {clock_name()}",
        "batch",
        "tokens/s without",
        "time with / without",
        "without / without",
    )
    for size in options.batches:
        texts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in prompts]
        batch = tokenizer(texts[60 : 60 + size], return_tensors="pt", padding=True, padding_side="left").to(
            model.device
        )
        seconds = rounds(model, batch, monitor, options.tokens, options.rounds)
        speed = size * options.tokens / median(s for own in seconds["off"] for s in own)
        with_, again = (Ratio.of(seconds[arm], seconds["off"]) for arm in ("on", "again"))
        table.add_row(str(size), f"{speed:.1f}", str(with_), str(again))
    Console(width=120).print(table)


def clock_name() -> str:
    return "wall-clock" if torch.cuda.is_available() else "CPU time"


def rounds(model: Any, batch: Any, monitor: Monitor, tokens: int, number: int) -> dict[str, list[list[float]]]:
    """Seconds of generation by arm and round, after one that does not count."""
    arms = ("off", "on", "again")
    seconds: dict[str, list[list[float]]] = {arm: [] for arm in arms}
    for place in range(-1, number):
        for arm in (arms[i] for i in turns(len(arms), place)):
            if arm == "on":
                monitor.attach(model)
            taken = _generate(model, batch, tokens)
            monitor.detach()
            if place >= 0:
                seconds[arm].append([taken])
    return seconds


def _generate(model: Any, batch: Any, tokens: int) -> float:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
