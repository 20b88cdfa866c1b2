"""Backends: what they hand to the trainer, and that another engine than was asked for is noticed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel

from neurofreeze.commands.settings import compose_once
from neurofreeze.config.backend import BACKENDS, BackendConfig
from neurofreeze.config.location import conf_folder
from neurofreeze.config.schema import TrainingConfig
from neurofreeze.data import read
from neurofreeze.errors import ConfigError, FreezeError
from neurofreeze.models.load import load_model
from neurofreeze.training import sft
from neurofreeze.training.backends import ONE_PROCESS, Backend

ROOT = Path(__file__).parents[2]


def config(name: str) -> BackendConfig:
    content = yaml.safe_load((conf_folder() / "backend" / f"{name}.yaml").read_text(encoding="utf-8"))
    return BackendConfig(**content)


class DeepSpeedEngine(torch.nn.Linear):
    """Named as DeepSpeed's."""

    def __init__(self, stage: int) -> None:
        super().__init__(1, 1)
        self.stage = stage

    def zero_optimization_stage(self) -> int:
        return self.stage


def trainer(wrapped: Any, model: Any = None, processes: int = 1, offload: bool = False) -> Any:
    zero = SimpleNamespace(offload_optimizer=offload, offload_param=offload)
    return SimpleNamespace(
        model=wrapped if model is None else model,
        model_wrapped=wrapped,
        optimizer=SimpleNamespace(optimizer=zero),
        accelerator=SimpleNamespace(num_processes=processes),
    )


def test_every_backend_has_its_file_and_says_what_it_is() -> None:
    files = {path.stem for path in (conf_folder() / "backend").glob("*.yaml")}
    assert files == set(BACKENDS)
    for name in files:
        assert config(name).name == name


def test_the_json_files_for_other_scripts_are_what_conf_hands_over() -> None:
    files = {path.stem for path in (ROOT / "launch" / "deepspeed").glob("*.json")}
    assert files == {name.replace("_", "-") for name in BACKENDS if name.startswith("zero")}
    for name in files:
        content = json.loads((ROOT / "launch" / "deepspeed" / f"{name}.json").read_text(encoding="utf-8"))
        assert content == config(name.replace("-", "_")).deepspeed, name


def test_the_engine_that_was_asked_for_is_accepted() -> None:
    model = torch.nn.Linear(1, 1)
    ONE_PROCESS.require(trainer(model))
    for stage in (1, 2, 3):
        Backend(config(f"zero{stage}")).require(trainer(DeepSpeedEngine(stage), model))
    Backend(config("zero3_offload")).require(trainer(DeepSpeedEngine(3), model, offload=True))


@pytest.mark.parametrize(
    ("name", "found", "runs"),
    [
        ("fsdp2", trainer(torch.nn.Linear(1, 1)), "plain"),
        ("fsdp2", trainer(object.__new__(DistributedDataParallel)), "ddp"),
        ("zero2", trainer(object.__new__(DistributedDataParallel)), "ddp"),
        ("zero2", trainer(DeepSpeedEngine(1)), "zero1"),
        ("zero3", trainer(DeepSpeedEngine(3), offload=True), "zero3_offload"),
        ("zero3_offload", trainer(DeepSpeedEngine(3)), "zero3"),
        ("plain", trainer(object.__new__(DistributedDataParallel)), "ddp"),
        ("plain", trainer(torch.nn.Linear(1, 1), processes=2), "plain on 2"),
    ],
)
def test_another_engine_is_not(name: str, found: Any, runs: str) -> None:
    with pytest.raises(FreezeError, match=rf"backend={name} was asked for on 1 ranks, but the trainer runs {runs}"):
        Backend(config(name)).require(found)


def test_nothing_is_trained_under_another_engine(tiny_checkpoint: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    with pytest.raises(FreezeError, match="backend=ddp was asked for on 1 ranks, but the trainer runs plain"):
        sft.fine_tune(  # in this process no ranks are connected
            tiny_checkpoint,
            tmp_path / "out",
            read("bundled:retail_bank/train", limit=4),
            TrainingConfig(steps=1, batch_size=2, max_length=32, bf16="false"),
            backend=config("ddp"),
            seed=0,
            progress=lambda done, _: steps.append(done),
        )
    assert steps == []
    assert not (tmp_path / "out").exists()


def test_bfloat16_under_zero_refuses_a_base_that_it_would_round(tiny_checkpoint: Path, tmp_path: Path) -> None:
    load_model(tiny_checkpoint, torch.float32).save_pretrained(tmp_path / "wide")
    zero = Backend(config("zero2"), bf16=True)
    with pytest.raises(
        ConfigError, match=r"torch\.float32, so that frozen ones would be rounded; set training\.bf16=f"
    ):
        zero.load(tmp_path / "wide")
    assert next(zero.load(tiny_checkpoint).parameters()).dtype == torch.bfloat16
    assert next(replace(zero, bf16=False).load(tmp_path / "wide").parameters()).dtype == torch.float32


def test_what_libraries_are_told_ends_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "of the user")
    with ONE_PROCESS.in_use():
        assert "ACCELERATE_USE_FSDP" not in os.environ
        os.environ["ACCELERATE_USE_FSDP"] = os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
    assert os.environ["ACCELERATE_USE_FSDP"] == "of the user"
    assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.ranks_per_node=3", "backend=ddp"], r"training\.batch_size is 8; expected a multiple of the number"),
        (["backend=plain"], "backend is 'plain'; expected ddp, fsdp2"),
        (["backend=fsdp2", "method=nest"], "update vectors need whole weights on each rank"),
        (["backend=zero2", "backend.deepspeed.zero_optimization.stage=3"], r"stage is 3; expected 2"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_starts(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_once(["cluster=torchrun", "training.batch_size=8", *overrides])


def test_bf16_can_be_switched_off_as_yaml_does() -> None:
    assert compose_once(["training.bf16=false"])[0].training.bf16 == "false"
