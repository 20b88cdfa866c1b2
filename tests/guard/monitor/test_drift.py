"""Drift is of the prompts it is given; tests/training/test_monitoring.py has it in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.data import read
from neurofreeze.guard.monitor.calibrating import calibrate, observations
from neurofreeze.guard.monitor.drift import Drift
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_model
from neurofreeze.neurons import NeuronMap


@pytest.fixture(scope="module")
def drift(tiny_checkpoint: Path, tiny_tokenizer: Any) -> Drift:
    model = load_model(tiny_checkpoint, torch.float32).eval()
    chosen = NeuronMask.random(NeuronMap.of(model), 0.1, seed=0)
    prompts = read("bundled:instructions/align", responses=False)
    return Drift(calibrate(model, tiny_tokenizer, prompts[:60], chosen), prompts[60:76], tiny_tokenizer)


def test_the_numbers_are_those_of_the_prompts(drift: Drift, tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    model = load_model(tiny_checkpoint, torch.float32).train()
    found, reference = drift.measure(model), drift.reference
    assert model.training
    seen = observations(model, tiny_tokenizer, drift.examples, reference.mask, "mean", batch_size=1)
    z = (np.concatenate(list(seen)) - reference.mean) / reference.scale
    means = z.mean(0)
    assert found["drift_shift"] == pytest.approx(np.sqrt((means**2).mean()), rel=1e-3)
    assert found["drift_largest"] == pytest.approx(means[np.abs(means).argmax()], rel=1e-3)
    assert found["drift_neuron"] == reference.names[np.abs(means).argmax()]
    far = [row @ reference.precision @ row for row in z]
    assert found["drift_distance"] == pytest.approx(np.mean(far) / reference.held_distances.mean(), rel=1e-3)
