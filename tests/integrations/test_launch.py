"""FreezeCallback under plain `accelerate launch` with the configs in launch/accelerate, two gloo ranks on the CPU.

Each config is used as it is; only the number of processes and a free port are given on the command line. That they ran
on the CPU is the script's affair.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import neurofreeze as nf
from neurofreeze.verification import weights_fingerprint
from tests.reference import mask_for

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "launch" / "accelerate"
SCRIPT = Path(__file__).with_name("launched.py")

_FP32 = {"parameters": ["Parameter"], "dtypes": ["torch.float32"], "zero_stage": None, "optimizer": "AdamW"}
_ZERO = {**_FP32, "wrapper": "DeepSpeedEngine", "dtypes": ["torch.bfloat16"]}
_ZERO12 = {**_ZERO, "engine": "deepspeed DeepSpeedZeroOptimizer"}
_ZERO3 = {**_ZERO, "engine": "deepspeed DeepSpeedZeroOptimizer_Stage3", "zero_stage": 3}

RUNS: dict[str, dict[str, Any]] = {
    "ddp": {**_FP32, "wrapper": "DistributedDataParallel", "engine": "plain"},
    "fsdp2": {**_FP32, "wrapper": "FSDPLlamaForCausalLM", "engine": "fsdp2", "parameters": ["DTensor"]},
    "zero1": {**_ZERO12, "zero_stage": 1},
    "zero2": {**_ZERO12, "zero_stage": 2},
    "zero3": {**_ZERO3, "offloaded": []},
    "zero3-offload": {**_ZERO3, "offloaded": ["offload_optimizer", "offload_param"], "optimizer": "DeepSpeedCPUAdam"},
}


@pytest.fixture(scope="module")
def mask(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    chosen = mask_for(model)
    folder = tmp_path_factory.mktemp("masks") / "mask"
    chosen.with_config(fingerprint=weights_fingerprint(tiny_checkpoint, chosen)).save_pretrained(folder)
    return folder


def launch(
    config: str, base: Path, mask: Path, output: Path, *options: str, ranks: int = 2, script: Path = SCRIPT
) -> dict[str, Any]:
    """Run the script; returns what each of its trainers, by name, reports of itself."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    command += ["--num_processes", str(ranks), "--main_process_port", "0"]
    command += [str(script), str(base), str(mask), str(output), *options]
    with (output.parent / "log.txt").open("w+", encoding="utf-8") as log:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        launched = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            # Long enough for DeepSpeed to compile its CPU operators, which it does once on a machine.
            code = launched.wait(timeout=800)
        finally:
            launched.terminate()  # it ends its ranks
            launched.wait()
        log.seek(0)
        assert code == 0, log.read()[-6000:]
    reports = output.glob("*/report.json")
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in reports}


def assert_frozen(config: str, found: dict[str, Any], base: Path, mask: Path, output: Path, ranks: int = 2) -> None:
    expected = {**RUNS[config], "mixed_precision": "bf16", "processes": ranks, "steps": 3}
    assert {key: found[key] for key in expected} == expected
    outcome = nf.verify(base, output, mask)
    assert outcome.ok, str(outcome)
    assert outcome.frozen > 5_000
    assert outcome.trainable_changed > 25_000
    assert found["fingerprint"] == outcome.base_fingerprint == outcome.tuned_fingerprint


def test_every_config_is_run_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == RUNS.keys()
    for path in CONFIGS.glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert content["mixed_precision"] == "bf16", path
        assert f"launch/accelerate/{path.name}" in path.read_text(encoding="utf-8")


TRL = ("sft", "dpo")


@pytest.fixture(scope="module")
def launched(
    tiny_checkpoint: Path, mask: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """Config -> where TRL's trainers saved, in one launch, and what they reported."""

    @cache
    def launch_all(config: str) -> tuple[Path, dict[str, Any]]:
        output = tmp_path_factory.mktemp("launched") / "tuned"
        return output, launch(config, tiny_checkpoint, mask, output, "--trainer", *TRL)

    return launch_all


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRL)
@pytest.mark.parametrize("config", RUNS)
def test_trl_trainers_keep_frozen_neurons(
    config: str,
    trainer: str,
    launched: Callable[[str], tuple[Path, dict[str, Any]]],
    tiny_checkpoint: Path,
    mask: Path,
) -> None:
    output, found = launched(config)
    assert_frozen(config, found[trainer], tiny_checkpoint, mask, output / trainer)


@pytest.mark.slow
def test_the_plain_trainer_keeps_frozen_neurons_and_resumes_on_more_ranks(
    tiny_checkpoint: Path, mask: Path, tmp_path: Path
) -> None:
    tuned, resumed = tmp_path / "tuned", tmp_path / "resumed"
    found = launch("fsdp2", tiny_checkpoint, mask, tuned, "--trainer", "plain")
    assert_frozen("fsdp2", found["plain"], tiny_checkpoint, mask, tuned / "plain")
    options = ("--trainer", "plain", "--resume", str(tuned / "plain" / "checkpoint-2"))
    found = launch("fsdp2", tiny_checkpoint, mask, resumed, *options, ranks=3)
    assert_frozen("fsdp2", found["plain"], tiny_checkpoint, mask, resumed / "plain", ranks=3)


@pytest.mark.slow
def test_without_the_callback_they_change(tiny_checkpoint: Path, mask: Path, tmp_path: Path) -> None:
    found = launch("ddp", tiny_checkpoint, mask, tmp_path / "tuned", "--trainer", "sft", "--no-freeze")
    assert found["sft"]["steps"] == 3
    outcome = nf.verify(tiny_checkpoint, tmp_path / "tuned" / "sft", mask)
    assert not outcome.ok
    assert outcome.changed == outcome.frozen
