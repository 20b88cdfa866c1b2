"""`python -m tests.benchmarks.guard`: what a gate costs while a model answers, in tokens a second and memory.

Every arm writes the same number of tokens in turn in one process, and its gate judges every one and never fires:
the most that a gate can cost. A probe and a set of neurons are compared with plain generate. NGSD's neuron is compared
with what its two models cost one after the other, each with its own cache; and two whole passes a token without a
cache, as in its published code, are compared with it. Memory is of each arm in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import neurofreeze as nf
from neurofreeze.console import quiet
from neurofreeze.guard.reactions import Flag
from neurofreeze.guard.triggers import LifTrigger, NeuronTrigger, ProbeTrigger
from neurofreeze.guard.triggers.newest import decoder_layers
from tests.benchmarks import models
from tests.benchmarks.alternate import fresh
from tests.benchmarks.memory import peak, reset_peak
from tests.benchmarks.ratios import Ratio, turns

_NEVER = 1e9
_PROMPT = 32  # tokens


@dataclass(frozen=True)
class Setting:
    """What is measured, and how."""

    model: str | None  # None: a small random one
    expert: str | None
    batch: int
    tokens: int
    threads: int
    cpu_time: bool

    def load(self, name: str | None, seed: int) -> Any:
        if name is None:
            model = models.QUICK.model(seed).eval()
            model.config.use_cache = model.generation_config.use_cache = True
            return model
        from neurofreeze.models.load import load_model
        from neurofreeze.models.resolve import resolve

        return load_model(resolve(name, None).folder).eval()


class _Sizes:
    """All that a gate which never fires asks of a tokenizer: nothing is decoded here."""

    eos_token_id = None

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class Bench:
    """The models, and the arms by name: what each does in one turn."""

    def __init__(self, setting: Setting, expert: bool = True) -> None:
        torch.set_num_threads(setting.threads)
        self.setting = setting
        self.model = setting.load(setting.model, 0)
        self.expert = setting.load(setting.expert or setting.model, 1) if expert else None
        size = self.model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, size, (setting.batch, _PROMPT), generator=generator).to(self.model.device)

    def arms(self) -> dict[str, Callable[[], Any]]:
        plain = self.of(self.model)
        found = {"plain": plain, "again": plain, "probe": self.gate(self.probe()), "neurons": self.gate(self.neurons())}
        if self.expert is not None:
            other = self.of(self.expert)
            found["two models"] = lambda: (plain(), other())
            found["lif"] = self.gate(LifTrigger())
            slow, other_slow = self.of(self.model, use_cache=False), self.of(self.expert, use_cache=False)
            found["lif, published"] = lambda: (slow(), other_slow())
        return found

    def of(self, generator: Any, **options: Any) -> Callable[[], Any]:
        length = {"max_new_tokens": self.setting.tokens, "min_new_tokens": self.setting.tokens}
        inputs = {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids), "pad_token_id": 0}
        return lambda: generator.generate(**inputs, **length, do_sample=False, **options)

    def gate(self, trigger: Any) -> Callable[[], Any]:
        expert = self.expert if trigger.needs_expert else None
        gate = nf.Gate(
            self.model,
            _Sizes(self.model.config.get_text_config().vocab_size),
            trigger,
            Flag(),
            steps=None,
            expert=expert,
        )
        gate.threshold = _NEVER
        return self.of(gate)

    def probe(self) -> ProbeTrigger:
        layers = decoder_layers(self.model)
        size = self.model.config.get_text_config().hidden_size
        return ProbeTrigger(layers[len(layers) // 2], torch.randn(size), torch.zeros(1))

    def neurons(self, count: int = 8) -> NeuronTrigger:
        """As many neurons as the default, each in another layer where there are so many: the most hooks."""
        sites = [site for site in nf.NeuronMap.of(self.model).sites.values() if site.kind == "mlp"]
        chosen = sites[:: max(1, len(sites) // count)][:count]
        each = count // len(chosen)
        channels = {site.module: torch.from_numpy(site.writes.index[:each]) for site in chosen}
        total = each * len(chosen)
        return NeuronTrigger(channels, torch.zeros(total), torch.ones(total), torch.ones(total))


def measure(setting: Setting, rounds: int, block: int, chosen: list[str] | None) -> dict[str, list[list[float]]]:
    """Seconds of each turn of each arm, or of those chosen and what they are compared with, round by round."""
    quiet()
    arms = Bench(setting, expert=chosen is None or bool({"two models", "lif", "lif, published"} & {*chosen})).arms()
    if chosen is not None:
        arms = {label: arm for label, arm in arms.items() if label in ("plain", *chosen)}
    clock = time.process_time if setting.cpu_time else time.perf_counter
    for arm in arms.values():
        arm()
    gc.collect()
    gc.freeze()
    labels = list(arms)
    seconds: dict[str, list[list[float]]] = {label: [] for label in labels}
    for number in range(rounds):
        for label in (labels[index] for index in turns(len(labels), number)):
            taken = []
            for _ in range(block):
                start = clock()
                arms[label]()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                taken.append(clock() - start)
            seconds[label].append(taken)
    return seconds


def weigh(setting: Setting, label: str) -> int:
    """Bytes at the peak of one arm's turns; resident on a CPU, the model's own among them."""
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arm = Bench(setting, expert=label in ("two models", "lif")).arms()[label]
    arm()
    gc.collect()
    reset_peak(device)
    arm()
    return peak(device)


# arm -> (what it is compared with, the ratio of times it should not exceed, that of memory)
GOALS = {"probe": ("plain", 1.02, 1.01), "neurons": ("plain", 1.02, 1.01), "lif": ("two models", 1.05, None)}


def table(results: list[dict[str, Any]]) -> Table:
    found = Table(title="Time and memory under guard, as ratios; 95 % bootstrap intervals over rounds")
    for heading in ("batch", "arm", "against", "tokens/s", "time", "goal", "peak memory", "goal "):
        found.add_column(heading, no_wrap=True)
    for result in results:
        seconds, memory = result["seconds"], result["memory"]
        made = result["setting"]["batch"] * result["setting"]["tokens"]
        for label in seconds:
            against, most, most_memory = GOALS.get(label, ("lif" if "published" in label else "plain", None, None))
            ratio = Ratio.of(seconds[label], seconds[against])
            each = sorted(second for steps in seconds[label] for second in steps)
            weight = f"{memory[label] / memory[against]:.3f}" if label in memory and against in memory else ""
            found.add_row(
                str(result["setting"]["batch"]),
                label,
                against,
                f"{made / each[len(each) // 2]:,.1f}",
                str(ratio),
                "" if most is None else f"<= {most}: {'met' if ratio.value <= most else 'not met'}",
                weight,
                "" if most_memory is None or not weight else f"<= {most_memory}: {_met(float(weight), most_memory)}",
            )
        found.add_section()
    return found


def _met(value: float, most: float) -> str:
    return "met" if value <= most else "not met"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a folder, a hub id or a short name")
    parser.add_argument("--expert", help="the same; the model again if left out")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--arms", nargs="+", help="some of them, by name as in the table; plain is always there")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block", type=int, default=1, help="turns of an arm in each round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time", action="store_true", help="time of this process alone, where others run beside it"
    )
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a small random model and few rounds: does it run?")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    name = None if options.quick else options.model
    rounds, tokens = (2, 8) if options.quick else (options.rounds, options.tokens)
    results = []
    for batch in options.batches:
        setting = Setting(name, options.expert, batch, tokens, options.threads, options.cpu_time)
        weighed = [] if options.no_memory else ["plain", "probe", "neurons", "two models", "lif"]
        memory = {label: fresh(weigh, setting, label) for label in weighed}
        seconds = measure(setting, rounds, options.block, options.arms)
        results.append({"setting": asdict(setting), "seconds": seconds, "memory": memory})
    Console(width=140).print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
