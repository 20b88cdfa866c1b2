"""Which engine is verified with which feature, read from the lists that the tests themselves run from.

`python -m tests.support` writes docs/engines.md; a test fails while that is out of date.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests import test_freezer, test_freezer_refusals
from tests.distributed import test_adapters, test_ddp, test_deepspeed, test_fsdp1, test_fsdp2, test_resume_deepspeed
from tests.integrations import test_launch

PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
ENGINES = ("one process", "DDP", "FSDP1", "FSDP2", "ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3")
_SHARDED = ENGINES[2:4] + ENGINES[5:]
# Feature -> the engines it could be asked of, where not all.
FEATURES: dict[str, tuple[str, ...]] = {
    "float32 or float64": ENGINES,
    "bfloat16 or mixed precision": ENGINES,
    "gradient accumulation and clipping": ENGINES,
    "AdamW": ENGINES,
    "SGD with momentum": ENGINES,
    "FusedAdam": ENGINES[4:],
    "DeepSpeedCPUAdam": ENGINES[5:],
    "gradient checkpointing": ENGINES,
    "torch.compile": ENGINES,
    "steps skipped on overflow": ENGINES,
    "two parameter groups": ENGINES,
    "rows sharded": _SHARDED,
    "columns sharded, Shard(1)": ("FSDP2",),
    "reshard_after_forward off": ("FSDP1", "FSDP2"),
    "flat parameters": ("FSDP1",),
    "replicated shards (HSDP)": ("FSDP1", "FSDP2"),
    "tensor parallelism": ENGINES,
    "expert stacks": ENGINES,
    "gradient_as_bucket_view": ("DDP",),
    "find_unused_parameters": ("DDP",),
    "optimizer offloaded": ENGINES[5:],
    "half of the optimizer offloaded": ("ZeRO-3",),
    "parameters and optimizer offloaded": ("FSDP1", "FSDP2", "ZeRO-3"),
    "fp32 accumulation": ("ZeRO-1",),
    "overlap_comm": ENGINES[5:],
    "round_robin_gradients": ENGINES[5:7],
    "contiguous_gradients off": ENGINES[5:7],
    "odd sub_group_size": ("ZeRO-3",),
    "zero.Init": ("ZeRO-3",),
    "resume, same mask": ENGINES,
    "resume at another world size": ENGINES[1:],
    "LoRA adapters (PEFT)": ENGINES,
    "SFTTrainer": ENGINES,
    "DPOTrainer": ENGINES,
}

# tests/integrations/test_callback.py, tests/distributed/test_fsdp1.py, tests/distributed/test_adapters.py
REFUSED = {
    (feature, "FSDP1")
    for feature in (
        "LoRA adapters (PEFT)",
        "SFTTrainer",
        "DPOTrainer",
        "parameters and optimizer offloaded",
        "tensor parallelism",
    )
}


class Shown(NamedTuple):
    """One feature that a test shows under one engine, on so many ranks."""

    engine: str
    feature: str
    ranks: int


def shown() -> Iterator[Shown]:
    """Everything the tests' lists show."""
    yield from _one_process()
    yield from _ddp()
    yield from _fsdp1()
    yield from _fsdp2()
    yield from _deepspeed()
    yield from _adapters()
    yield from _trainers()


def _one_process() -> Iterator[Shown]:
    always = ("float32 or float64", "bfloat16 or mixed precision", "gradient accumulation and clipping")
    optimizers = {"AdamW": "AdamW", "SGD": "SGD with momentum"}
    more = ("gradient checkpointing", "torch.compile", "steps skipped on overflow", "expert stacks")
    resume = ("resume, same mask",)
    assert optimizers.keys() <= test_freezer.OPTIMIZERS.keys()
    for feature in (*always, *optimizers.values(), *more, *resume):
        yield Shown("one process", feature, 1)


def _ddp() -> Iterator[Shown]:
    for feature in ("float32 or float64", "gradient accumulation and clipping", "AdamW"):
        yield Shown("DDP", feature, 2)
    for feature in (*test_ddp.OPTIONS, "float32 or float64", "gradient accumulation and clipping"):
        yield Shown("DDP", feature, 4)


def _fsdp1() -> Iterator[Shown]:
    for ranks, cells in ((2, test_fsdp1.TWO_RANKS), (4, test_fsdp1.FOUR_RANKS)):
        for cell in cells:
            yield Shown("FSDP1", "float32 or float64", ranks)
            yield Shown("FSDP1", "gradient accumulation and clipping", ranks)
            yield Shown("FSDP1", "rows sharded", ranks)
            yield Shown("FSDP1", {"adamw": "AdamW", "sgd": "SGD with momentum"}[cell.optimizer], ranks)
            if cell.strategy.name == "SHARD_GRAD_OP":
                yield Shown("FSDP1", "reshard_after_forward off", ranks)
            if cell.strategy in test_fsdp1.HYBRID:
                yield Shown("FSDP1", "replicated shards (HSDP)", ranks)
            if not cell.original:
                yield Shown("FSDP1", "flat parameters", ranks)
            if cell.checkpointing:
                yield Shown("FSDP1", "gradient checkpointing", ranks)
            if cell.compiled:
                yield Shown("FSDP1", "torch.compile", ranks)
    yield Shown("FSDP1", "bfloat16 or mixed precision", 2)


def _fsdp2() -> Iterator[Shown]:
    for ranks, wraps in ((2, list(test_fsdp2.WRAPS.values())[:2]), (4, test_fsdp2.WRAPS.values())):
        for feature in (*wraps, "float32 or float64", "gradient accumulation and clipping", "AdamW", "expert stacks"):
            yield Shown("FSDP2", feature, ranks)
    for feature in test_fsdp2.OPTIMIZERS.values():
        yield Shown("FSDP2", feature, 4)
    yield Shown("FSDP2", "bfloat16 or mixed precision", 2)
    yield Shown("FSDP2", "steps skipped on overflow", 2)
    for ranks in (4, 2, 3):
        yield Shown("FSDP2", "resume, same mask", ranks)
        yield Shown("FSDP2", "resume at another world size", ranks)


def _deepspeed() -> Iterator[Shown]:
    for cell in test_deepspeed.CELLS.values():
        for ranks in test_deepspeed.WORLDS:
            for feature in _features(cell):
                yield Shown(f"ZeRO-{cell.stage}", feature, ranks)
    for stage in (1, 2, 3):
        yield Shown(f"ZeRO-{stage}", "steps skipped on overflow", 2)
    for _, stages in test_resume_deepspeed.CELLS.values():
        for stage, ranks in zip(stages, (4, 2, 3), strict=True):
            yield Shown(f"ZeRO-{stage}", "resume, same mask", ranks)
            yield Shown(f"ZeRO-{stage}", "resume at another world size", ranks)


def _features(cell: test_deepspeed.Cell) -> Iterator[str]:
    yield {"fp32": "float32 or float64", "bf16": "bfloat16 or mixed precision"}[cell.dtype]
    yield from ("gradient accumulation and clipping", "two parameter groups", cell.optimizer)
    if cell.stage:
        yield "rows sharded"
    offload = cell.zero.get("offload_optimizer")
    if offload and "ratio" in offload:
        yield "half of the optimizer offloaded"
    elif offload:
        yield "parameters and optimizer offloaded" if "offload_param" in cell.zero else "optimizer offloaded"
    if cell.more:
        yield "fp32 accumulation"
    if cell.zero_init:
        yield "zero.Init"
    named = {
        "overlap_comm": "overlap_comm",
        "round_robin_gradients": "round_robin_gradients",
        "contiguous_gradients": "contiguous_gradients off",
    }
    yield from (feature for setting, feature in named.items() if setting in cell.zero)
    if cell.zero.get("sub_group_size") and not offload:
        yield "odd sub_group_size"


def _adapters() -> Iterator[Shown]:
    stages = {f"ZeRO-{stage}" for stage, _, _ in test_adapters.CELLS.values()}
    for engine in ("DDP", "FSDP2", *sorted(stages)):
        yield Shown(engine, "LoRA adapters (PEFT)", test_adapters.RANKS)
    yield Shown("one process", "LoRA adapters (PEFT)", 1)


def _trainers() -> Iterator[Shown]:
    engines = {"ddp": "DDP", "fsdp2": "FSDP2", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
    for config in test_launch.RUNS:
        for feature in ("SFTTrainer", "DPOTrainer"):
            yield Shown(engines[config.removesuffix("-offload")], feature, 2)
    yield Shown("one process", "SFTTrainer", 1)


def page() -> str:
    """The content of docs/engines.md."""
    ranks: dict[tuple[str, str], set[int]] = {}
    for engine, feature, size in shown():
        assert engine in FEATURES[feature], f"{feature} is said not to concern {engine}"
        ranks.setdefault((feature, engine), set()).add(size)
    rows = ["| | " + " | ".join(ENGINES) + " |", "|---|" + "---|" * len(ENGINES)]
    for feature, engines in FEATURES.items():
        cells = [
            "refused" if (feature, engine) in REFUSED else _cell(ranks.get((feature, engine)), engine in engines)
            for engine in ENGINES
        ]
        rows.append(f"| {feature} | " + " | ".join(cells) + " |")
    refused = [*test_freezer_refusals.ENGINES, *(name for _, name in test_freezer_refusals.ZERO_OPTIMIZERS)]
    return _PAGE.format(table="\n".join(rows), refused=", ".join(f"`{name}`" for name in refused))


def _cell(ranks: set[int] | None, concerns: bool) -> str:
    if ranks:
        return "ranks " + ", ".join(map(str, sorted(ranks))) if ranks != {1} else "yes"
    return "–" if concerns else ""


_PAGE = """# Engines

What the tests of this repository show, and on how many ranks. "Ranks 2, 4" means: trained on two and on four
processes, with odd sizes so that rows are split and some shards are empty; the engine that really ran was asserted;
every frozen bit the same, frozen moments zero, the clip norm and the trainable elements those of a dense mask on one
process. A dash means: not shown and not refused. All of it ran on CPU processes over gloo; nothing in this table has
been run on GPUs yet.

{table}

One process takes any torch optimizer but those refused below: AdamW, Adam, SGD, NAdam, RMSprop, Adagrad and Adafactor
are compared bit by bit with a dense mask. ZeRO-3 checkpoints go on under FSDP2 through an exported one (3 ranks).

Refused by name, with an error on every rank:
{refused};
DeepSpeed with ZenFlow, NVMe swapping, DeepCompile, mixture of experts or its own autocast; FSDP1 with CPU offload,
communication hooks or in a trainer; optimizers of bitsandbytes and torchao, whose 8-bit moments cannot be seen to be
zero, Adamax, ASGD, Rprop and schedule-free ones, whose state is not zero where the gradient always was, LOMO, which
steps within the backward pass, and those of `torch.distributed.optim`, which hide the moments, except where
[selective layers](selective.md) keep all that is frozen from them.

This page is written by `python -m tests.support` from the lists that the tests run from.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
