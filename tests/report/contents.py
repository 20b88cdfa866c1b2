"""A synthetic Content, as a run would measure it."""

from __future__ import annotations

from typing import Any

import numpy as np

from neurofreeze.evaluation.statistics import Mean, PairedTest, Rate
from neurofreeze.methods.ratio_search import Curve, Point, Tolerance
from neurofreeze.report.content import Arm, Comparison, Content, DataSource, Judged, Measurements, Pruning, Site


def rate(count: int, total: int) -> Rate:
    return Rate.of([place < count for place in range(total)])


def measurements(refused: int, over: int, margin: float, loss: float) -> Measurements:
    rng = np.random.default_rng(refused)
    return Measurements(
        refusals=rate(refused, 64),
        over_refusals=rate(over, 40),
        margin=Mean.of(list(margin + rng.normal(size=64))),
        domain_loss=Mean.of(list(loss + 0.2 * rng.normal(size=64))),
        general_loss=Mean.of(list(1.9 + 0.2 * rng.normal(size=64))),
        degenerate=rate(1, 104),
    )


def sites(layers: int, mlp: int, heads: int) -> list[Site]:
    rng = np.random.default_rng(0)
    found = []
    for layer in range(layers):
        for kind, neurons in (("attention", heads), ("mlp", mlp)):
            groups = rng.choice(4, size=neurons, p=[0.2, 0.2, 0.58, 0.02]).astype(np.uint8)
            frozen = (groups == 3) | ((groups == 2) & (rng.random(neurons) < 0.06))
            found.append(Site(f"layers.{layer}.{kind}", kind, layer, groups, frozen))  # type: ignore[arg-type]
    return found


def curve(end: float, steps: int = 40) -> list[tuple[int, float]]:
    return [(step, end + 1.3 * float(np.exp(-step / 9)) + 0.02 * (step % 3)) for step in range(1, steps + 1)]


def mean(value: float, half: float) -> Mean:
    return Mean(value, 30, value - half, value + half)


def ratio_curves() -> list[Curve]:
    """A search in which one group follows the rule, one ends at the grid's largest ratio, and one fits nowhere."""
    grid = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2)

    def points(margin: float, loss: float) -> list[Point]:
        return [Point(r, round(48_000 * r), mean(margin * r**0.5, 0.2 + 3 * r), mean(loss * r, 0.02 + r)) for r in grid]

    return [
        Curve("ESU", points(30, 8.1), Tolerance(), 0.01, True, ""),
        Curve("EUU", points(1, 12), Tolerance(), 0.2, True, "the largest ratio tried; a larger one may fit too"),
        Curve("RU", points(12, 2), Tolerance(), 0.005, False, "even the smallest worsens the refusal margin"),
    ]


def pruned(draws: int = 3) -> list[Pruning]:
    return [
        Pruning("chosen", mean(6.104, 0.52), mean(0.213, 0.04)),
        *(Pruning(f"random {draw}", mean(0.4 * draw - 0.3, 0.2), mean(0.1 + draw / 50, 0.03)) for draw in range(draws)),
    ]


def judged() -> list[Judged]:
    return [
        Judged("no freezing", "plain", "strict-opening v1", rate(41, 64), rate(23, 64), rate(0, 64), rate(1, 64)),
        Judged("no freezing", "for-fiction", "strict-opening v1", rate(12, 64), rate(47, 64), rate(5, 64), rate(2, 64)),
    ]


def content(**changes: Any) -> Content:
    """Four arms of a 3-layer model; any field can be replaced."""
    found = changes.pop("sites", None) or sites(3, 96, 9)
    frozen = (3465, 5_987_520, 0)  # neurons, elements, changed elements
    random, safety = measurements(24, 2, -0.8, 1.2), measurements(49, 4, 2.7, 1.24)
    fields: dict[str, Any] = {
        "title": "Safety through fine-tuning",
        "model": "SmolLM2-135M-Instruct",
        "model_source": "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct @ 12fd25f",
        "seed": 17,
        "version": "0.1.0",
        "created": "2026-01-31 12:00 UTC",
        "method": {"strategy": "wifv", "groups": ["ESU", "CU"], "fraction": 0.075, "rank": {"per": "layer"}},
        "phrase_list": "refusal phrases, version 3",
        "total_neurons": sum(len(site.groups) for site in found),
        "total_elements": 134_515_008,
        "sites": found,
        "arms": [
            Arm("aligned", "Aligned start", measurements(58, 3, 4.1, 2.9)),
            Arm("none", "No freezing", measurements(21, 1, -1.2, 1.18), curve(1.18), seconds=412.0),
            Arm("random", "Random neurons, same number", random, curve(1.2), *frozen, 431.0),
            Arm("safety", "Safety neurons frozen", safety, curve(1.24), *frozen, 429.4),
        ],
        "comparisons": [
            Comparison("safety", "none", "harmful requests", PairedTest(12, 3, 0.03515625)),
            Comparison("safety", "random", "harmful requests", PairedTest(26, 1, 4e-7)),
            Comparison("safety", "none", "benign look-alikes", PairedTest(3, 0, 0.25)),
        ],
        "data": [
            DataSource("calibration, harmful", "data/harmful.jsonl", 128, "a1b2c3d4e5f60718"),
            DataSource("evaluation, harmful", "data/harmful.jsonl", 64, "0f1e2d3c4b5a6978"),
            DataSource("fine-tuning", "data/retail_bank.jsonl", 1200, "9988776655443322"),
        ],
        "command": "neurofreeze run model=smollm2_135m method=ssah strategy.fraction=0.075 seed=17",
        "config_yaml": "model:\n  name: HuggingFaceTB/SmolLM2-135M-Instruct\nseed: 17\n",
        "notes": ["Prompts are in English only.", "Greedy decoding, 64 new tokens."],
    }  # fmt: skip
    return Content(**(fields | changes))
