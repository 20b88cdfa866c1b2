"""`python -m tests.benchmarks.selection MODEL`: what scoring costs, beside bare passes over the same tokens.

Strategies with forward passes only are compared with a forward pass, alone and all together in one shared pass; snip
and margin with a forward and a backward pass of their own loss that stops where theirs does. All take turns in one
process, in every repeat in another order. Forward-only strategies are timed without making scores of what they have
gathered, which does not grow with the data: that takes the seconds of a column of its own, once a selection. See
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.table import Table

from neurofreeze import NeuronMap
from neurofreeze.console import console, quiet, quiet_transformers, say
from neurofreeze.data import read
from neurofreeze.data.batches import batches
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.models.resolve import resolve
from neurofreeze.strategies import make, passes
from neurofreeze.strategies.margin import Margin
from neurofreeze.strategies.observing import forward, observe
from neurofreeze.strategies.resuming import Turns
from neurofreeze.strategies.snip import Snip, _own_gradients, _weights
from tests.benchmarks.overhead import cpu
from tests.benchmarks.ratios import Ratio, turns

FORWARD = ("wifv", "wanda", "contrast", "probe", "sn_tune")
AGAIN = "again"
TOGETHER = "all of these in one pass"


class Arm(NamedTuple):
    """What is timed, and which arm it is compared with."""

    baseline: str
    run: Callable[[], None]


class Arms:
    """What takes turns, by name."""

    def __init__(self, model: Any, tokenizer: Any, prompts: int, batch_size: int) -> None:
        self.model = model
        self.map = NeuronMap.of(model)
        examples = read("bundled:harmful/calibration", limit=prompts)
        self.batches = list(batches(tokenizer, examples, batch_size, 512))
        self.margin = Margin()
        # Each comes with four openings.
        self.openings = self.margin.batches(tokenizer, examples[: max(1, prompts // 4)], batch_size, None)
        self.found: dict[str, Arm] = {}
        self._add("forward", self._forward, {name: partial(self._observe, [name]) for name in FORWARD})
        self.found[TOGETHER] = Arm("forward", partial(self._observe, list(FORWARD)))
        for average in ("example", "batch"):
            snip = Snip(average)  # type: ignore[arg-type]
            self._add(
                f"backward, {average}", partial(self._backward, snip), {f"snip, {average}": partial(self._snip, snip)}
            )
        self._add("backward to embeddings", self._to_embeddings, {"margin": self._margin})

    def _add(self, baseline: str, bare: Callable[[], None], scoring: dict[str, Callable[[], None]]) -> None:
        for name, run in {baseline: bare, f"{baseline}, {AGAIN}": bare, **scoring}.items():
            self.found[name] = Arm(baseline, run)

    def scoring_seconds(self) -> dict[str, float]:
        """What making scores of what was gathered takes, for strategies with forward passes only."""
        found = {}
        for name in FORWARD:
            strategy: Any = make(name, {})
            seen = {role: strategy.watch(self.map) for role in strategy.sets}
            for watched in seen.values():
                observe(self.model, self.batches, [watched])
            started = time.perf_counter()
            strategy.score(self.model, self.map, seen)
            found[name] = time.perf_counter() - started
        return found

    @property
    def tokens(self) -> dict[str, int]:
        """How many tokens, without padding, pass in a turn."""
        return {
            name: sum(int(batch.attention_mask.sum()) for batch in found)
            for name, found in (("conversations", self.batches), ("prompts with openings", self.openings))
        }

    @torch.no_grad()
    def _forward(self) -> None:
        for batch in self.batches:
            forward(self.model, batch)

    def _observe(self, names: list[str]) -> None:
        strategies: list[Any] = [make(name, {}) for name in names]
        observe(self.model, self.batches, [strategy.watch(self.map) for strategy in strategies])

    @torch.enable_grad()
    def _backward(self, snip: Snip) -> None:
        wanted = [parameter for parameter, _ in _weights(self.model, self.map).values()]
        with _own_gradients(self.model, wanted):
            for batch in self.batches:
                for part in snip._parts(batch):
                    log_probs, _ = passes.answers(self.model, part)
                    torch.autograd.backward(-log_probs.mean(), inputs=wanted)
                    for parameter in wanted:
                        parameter.grad = None

    def _snip(self, snip: Snip) -> None:
        snip.run(self.model, self.map, {"safety": self.batches}, Turns())

    @torch.enable_grad()
    def _to_embeddings(self) -> None:
        leaves: list[torch.Tensor] = []

        def start(_: Any, __: Any, embedded: torch.Tensor) -> torch.Tensor:
            leaves[:] = [embedded.detach().requires_grad_()]
            return leaves[0]

        handle = self.model.get_input_embeddings().register_forward_hook(start)
        for batch in self.openings:
            log_probs, _ = passes.answers(self.model, batch)
            torch.autograd.grad(log_probs.sum(), leaves)
        handle.remove()

    def _margin(self) -> None:
        self.margin.run(self.model, self.map, {"safety": self.openings}, Turns())


def measure(arms: Arms, repeats: int, device: torch.device) -> dict[str, list[list[float]]]:
    """Seconds of every turn, repeat by repeat, after one turn of each that does not count."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in arms.found}
    for number in range(-1, repeats):
        order = turns(len(arms.found), max(number, 0))
        for name in (list(arms.found)[place] for place in order):
            _wait(device)
            started = time.perf_counter()
            arms.found[name].run()
            _wait(device)
            if number >= 0:
                seconds[name].append([time.perf_counter() - started])
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(arms: Arms, seconds: dict[str, list[list[float]]], scoring: dict[str, float]) -> Table:
    """One row an arm, below the one it is compared with."""
    found = Table(title="Scoring / the same passes without it", title_justify="left")
    for heading in ("", "ratio", "s", "scores s"):
        found.add_column(heading, no_wrap=True)
    for name, arm in arms.found.items():
        ratio = "" if name == arm.baseline else str(Ratio.of(seconds[name], seconds[arm.baseline]))
        once = f"{scoring[name]:.2f}" if name in scoring else ""
        found.add_row(name, ratio, f"{median(turn for (turn,) in seconds[name]):.3f}", once)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.selection", description=__doc__)
    parser.add_argument("model", help="an aligned model: a folder, a hub id or a short name")
    parser.add_argument("--repeats", type=int, default=10, help="timed turns of each arm")
    parser.add_argument("--prompts", type=int, default=32, help="conversations a turn")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every turn's seconds here")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("at least 2 repeats")
    quiet()
    quiet_transformers()
    folder = resolve(options.model, None).folder
    model, tokenizer = load_model(folder, getattr(torch, options.dtype)), load_tokenizer(folder)
    arms = Arms(model, tokenizer, options.prompts, options.batch_size)
    setting = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        **{name: version(name) for name in ("torch", "transformers", "neurofreeze")},
        "model": options.model,
        "dtype": options.dtype,
        "repeats": options.repeats,
        "tokens a turn": arms.tokens,
    }
    say(json.dumps(setting, indent=2))
    seconds, scoring = measure(arms, options.repeats, passes.device(model)), arms.scoring_seconds()
    console.print(table(arms, seconds, scoring))
    if options.json:
        content = {"setting": setting, "seconds": seconds, "scoring_seconds": scoring}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
