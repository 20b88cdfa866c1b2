"""Monitoring: training comes to the same bits as without it, and the numbers are those of the model at that step."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from neurofreeze.config.schema import EvaluationConfig, TrainingConfig
from neurofreeze.data import Example, read
from neurofreeze.evaluation.likelihood import refusal_margins
from neurofreeze.guard.monitor import calibrate
from neurofreeze.guard.monitor.drift import Drift
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.training.monitoring import MonitorCallback
from neurofreeze.training.probes import Probes, undisturbed
from neurofreeze.training.sft import fine_tune
from neurofreeze.training.updates import UpdateShares
from tests import tiny

CONFIG = TrainingConfig(steps=5, batch_size=2, learning_rate=1e-2, warmup_steps=0, max_length=48, bf16="false")
EVALUATION = EvaluationConfig(max_new_tokens=3, batch_size=4)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return read("bundled:retail_bank/train", limit=12)


@pytest.fixture(scope="module")
def harmful() -> list[Example]:
    return read("bundled:harmful/calibration", responses=False)[:6]


@pytest.fixture(scope="module")
def base(examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with dropout: training on it differs where modes or random states do."""
    rows = [str(example.response) for example in examples]
    return tiny.checkpoint(tmp_path_factory.mktemp("base") / "tiny", rows, attention_dropout=0.5)


@pytest.fixture(scope="module")
def mask(base: Path) -> NeuronMask:
    return NeuronMask.random(NeuronMap.of(load_config(base)), 0.3, seed=1)


def drift_of(base: Path) -> Drift:
    """Of a few of the base's neurons from what they do on instructions."""
    model, tokenizer = load_model(base, torch.float32).eval(), load_tokenizer(base)
    prompts = read("bundled:instructions/align", responses=False)
    watched = NeuronMask.random(NeuronMap.of(model), 0.1, seed=0)
    return Drift(calibrate(model, tokenizer, prompts[:60], watched), prompts[60:76], tokenizer)


class Run:
    """A monitored fine-tune: its folder and all that it logged."""

    def __init__(
        self, base: Path, output: Path, examples: list[Example], mask: NeuronMask, harmful: Any = None
    ) -> None:
        self.output = output
        self.trained: list[dict[str, Any]] = []
        self.monitored: list[dict[str, Any]] = []
        self.checked: list[dict[str, Any]] = []
        callbacks: list[TrainerCallback] = []
        if harmful is not None:
            probes = Probes(harmful, load_tokenizer(base), EVALUATION)
            updates = UpdateShares(base, NeuronMap.of(load_config(base)))
            callbacks = [MonitorCallback(probes, 2, self.monitored.append, updates, drift_of(base))]
        fine_tune(
            base,
            output,
            examples,
            replace(CONFIG, check_every=2),
            seed=0,
            mask=mask,
            log=self.trained.append,
            checked=self.checked.append,
            callbacks=callbacks,
        )


@pytest.fixture(scope="module")
def run(base: Path, examples: list[Example], mask: NeuronMask, harmful: list[Example], tmp_path_factory: Any) -> Run:
    return Run(base, tmp_path_factory.mktemp("monitored") / "tuned", examples, mask, harmful)


def test_training_comes_to_the_same_bits(
    run: Run, base: Path, examples: list[Example], mask: NeuronMask, tmp_path: Path
) -> None:
    plain = Run(base, tmp_path / "tuned", examples, mask)
    assert [row["loss"] for row in plain.trained] == [row["loss"] for row in run.trained]
    first, second = ((found.output / "model.safetensors").read_bytes() for found in (run, plain))
    assert first == second
    assert plain.monitored == []


def test_it_measures_every_so_many_steps_and_at_the_end(run: Run, harmful: list[Example]) -> None:
    assert [row["global_step"] for row in run.monitored] == [2, 4, 5]
    for row in run.monitored:
        assert row["refusals"][1] == len(harmful)
        assert row["refusal_rate"] == row["refusals"][0] / len(harmful)
        assert row["seconds"] > 0
    assert len({row["refusal_margin"] for row in run.monitored}) == 3


def test_the_last_numbers_are_those_of_the_model_that_is_saved(run: Run, harmful: list[Example]) -> None:
    model, tokenizer = load_model(run.output, torch.float32).eval(), load_tokenizer(run.output)
    margins = refusal_margins(model, tokenizer, harmful, EVALUATION.batch_size)
    # The checkpoint is rounded to bfloat16.
    assert run.monitored[-1]["refusal_margin"] == pytest.approx(sum(margins) / len(margins), rel=0.02)


def test_updates_grow_and_their_shares_add_up(run: Run, base: Path) -> None:
    norms = [row["update_norm"] for row in run.monitored]
    assert 0 < norms[0] < norms[1] < norms[2]
    for row in run.monitored:
        assert row["updates"].keys() == {*NeuronMap.of(load_config(base)).sites, "rest"}
        assert sum(row["updates"].values()) == pytest.approx(1)


def test_safety_neurons_drift_from_their_reference(run: Run, base: Path) -> None:
    start = drift_of(base).measure(load_model(base, torch.float32))
    assert start["drift_shift"] < 0.6  # the mean of 16 prompts is off by about 1 / 4
    assert all(row["drift_shift"] > start["drift_shift"] for row in run.monitored)
    assert run.monitored[-1]["drift_distance"] > start["drift_distance"]
    assert run.monitored[-1]["drift_alarms"][1] == 16


def test_checks_of_the_frozen_elements_are_reported(run: Run) -> None:
    assert [row["global_step"] for row in run.checked] == [2, 4, 5]
    assert all(row["frozen_intact"] is True and len(row["fingerprint"]) == 16 for row in run.checked)


def test_training_rows_have_throughput_and_memory(run: Run) -> None:
    assert [row["global_step"] for row in run.trained] == [1, 2, 3, 4, 5]
    for row in run.trained:
        assert row["tokens_per_second"] > 0
        assert 0.05 < row["memory_gb"] < 64
        assert {"loss", "learning_rate", "grad_norm"} <= row.keys()


def test_what_monitoring_cost_is_said(
    base: Path, examples: list[Example], mask: NeuronMask, harmful: Any, tmp_path: Path, capsys: Any
) -> None:
    Run(base, tmp_path / "tuned", examples[:4], mask, harmful[:2])
    assert "monitoring: 3 times in " in capsys.readouterr().out


def test_an_interrupted_training_is_not_measured_again(harmful: Any, base: Path, capsys: Any) -> None:
    """A job that was told to stop has seconds left."""
    rows: list[Any] = []
    callback = MonitorCallback(Probes(harmful, None, EVALUATION), 2, rows.append)
    state = type("State", (), {"global_step": 3, "max_steps": 5})()
    callback.on_train_end(None, state, None, model=None, optimizer=None)  # type: ignore[arg-type]
    assert rows == []


def test_nothing_is_disturbed(base: Path) -> None:
    model = load_model(base, torch.float32).train()
    model.model.layers[0].mlp.eval()
    modes = [module.training for module in model.modules()]

    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand())

    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = drawn()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    with undisturbed(model):
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in model.modules())
        drawn()
    assert drawn() == expected
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
