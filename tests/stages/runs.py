"""Whole runs in this process, on the tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neurofreeze.cli import main

ARMS = ("none", "random", "safety")
STEPS = 4


def settings(model: Path, folder: Path) -> list[str]:
    """Small enough for seconds, with steps large enough to survive rounding to bfloat16."""
    return [
        f"model={model}",
        f"hydra.run.dir={folder}",
        "alignment.mode=never",
        f"training.steps={STEPS}",
        "training.batch_size=2",
        "training.max_length=48",
        "training.learning_rate=5e-3",
        "evaluation.limit=4",
        "evaluation.max_new_tokens=4",
    ]


def neurofreeze(command: str, model: Path, folder: Path, *overrides: str) -> int:
    """`neurofreeze COMMAND` with these settings; returns the exit code."""
    return main([command, *settings(model, folder), *overrides])


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder: Path) -> dict[str, bytes]:
    """Every parameter's bytes."""
    import torch

    from neurofreeze.checkpoints import open_weights

    with open_weights(folder) as found:
        return {name: found[name].view(torch.uint8).numpy().tobytes() for name in found}
