"""When a trajectory is measured: at the steps nearest to the shares, each once, the last one included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TrainerState

from neurofreeze.benchmark.trajectory import TrajectoryCallback


@pytest.mark.parametrize(
    ("steps", "shares", "expected"),
    [
        (16, [0.25, 0.5, 1.0], [4, 8, 16]),
        (9, [0.3, 1.0], [3, 9]),  # 2.7
        (100, [0.29, 0.57, 1.0], [29, 57, 100]),  # a little less in floating point
        (2, [0.1, 0.2, 1.0], [1, 2]),
    ],
)
def test_measured_at_the_steps_nearest_to_the_shares(steps: int, shares: list[float], expected: list[int]) -> None:
    model = torch.nn.Linear(1, 1)
    callback = TrajectoryCallback(shares, lambda model: {"training": model.training})
    unused: Any = None
    for step in range(1, steps + 1):
        callback.on_step_end(unused, TrainerState(global_step=step, max_steps=steps), unused, model=model)
    assert [point["step"] for point in callback.points] == expected
    assert not any(point["training"] for point in callback.points)
    assert model.training
