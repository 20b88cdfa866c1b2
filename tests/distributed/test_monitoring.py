"""Monitoring on ranks that share the model: all take part, and training comes to the same bits as without it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml

from neurofreeze.config.backend import BackendConfig
from neurofreeze.config.location import conf_folder
from neurofreeze.data import read
from neurofreeze.models.load import load_config, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.testing import run_distributed_test
from neurofreeze.training.monitoring import MonitorCallback
from neurofreeze.training.probes import Probes
from neurofreeze.training.sft import fine_tune
from neurofreeze.training.updates import UpdateShares
from tests.training.test_monitoring import CONFIG, EVALUATION

pytestmark = pytest.mark.slow


def both(name: str, base: Path, folder: Path, alone: dict[str, Any]) -> None:
    """Train with and without a monitor, and compare."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # as launchers do
    settings: dict[str, Any] = yaml.safe_load((conf_folder() / "backend" / f"{name}.yaml").read_text(encoding="utf-8"))
    for output in ("plain", "monitored"):
        rows = tune(base, folder / output, BackendConfig(**settings), monitored=output == "monitored")
    if dist.get_rank() > 0:
        assert rows == [], "one rank logs for all"
        return
    plain, monitored = ((folder / output / "model.safetensors").read_bytes() for output in ("plain", "monitored"))
    assert plain == monitored
    assert [row["global_step"] for row in rows] == [2, 4]
    # The same as in one process: each element of an update counts once, and the gathered model is the whole one.
    assert rows[0]["refusal_margin"] == pytest.approx(alone["refusal_margin"], rel=1e-3)
    assert rows[0]["update_norm"] == pytest.approx(alone["update_norm"], rel=1e-3)
    assert rows[0]["updates"] == pytest.approx(alone["updates"], abs=1e-3)


def tune(base: Path, output: Path, backend: BackendConfig | None, monitored: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    probes = Probes(read("bundled:harmful/calibration", responses=False)[:4], load_tokenizer(base), EVALUATION)
    monitor = MonitorCallback(probes, 2, rows.append, UpdateShares(base, NeuronMap.of(load_config(base))))
    fine_tune(
        base,
        output,
        read("bundled:retail_bank/train", limit=12),
        replace(CONFIG, steps=4, batch_size=4),
        backend=backend,
        seed=0,
        callbacks=[monitor] if monitored else [],
    )
    return rows


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the monitor of one process logs first."""
    return tune(tiny_checkpoint, tmp_path_factory.mktemp("alone") / "out", None, monitored=True)[0]


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_training_comes_to_the_same_bits(
    name: str, alone: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run_distributed_test(both, 2, args=(name, tiny_checkpoint, tmp_path, alone))
