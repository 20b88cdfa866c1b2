"""The selective benchmark: each arm trains what it says by what it says, and the whole command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from neurofreeze import NeuronMask
from tests.benchmarks import selective
from tests.benchmarks.alternate import require_ordinary
from tests.benchmarks.models import QUICK
from tests.benchmarks.ways import LORA_RANK, Setting, Training, Way, ways

SETTING = Setting(QUICK, "cpu")
FULL, FREEZE_FEW, SELECTIVE_FEW, LORA, SHIRA, FREEZE_MANY, SELECTIVE_MANY = ways()
every_way = pytest.mark.parametrize("way", ways(), ids=lambda way: way.label)


def trained(way: Way) -> Training:
    training = Training(way, SETTING)
    for _ in range(2):
        training.step(SETTING.ids())
    return training


@every_way
def test_an_arm_moves_what_it_trains_and_nothing_else(way: Way) -> None:
    trained(way).check()


@pytest.mark.parametrize("way", ways()[1:], ids=lambda way: way.label)
def test_an_arm_that_moves_more_is_found_out(way: Way) -> None:
    training = trained(way)
    training.freezer = None  # whose own check would find it first
    weight = next(p for name, p in training.model.named_parameters() if name.endswith(("proj.weight", "layer.weight")))
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match=r"frozen elements of .* moved"):
        training.check()


@every_way
def test_an_arm_that_does_not_train_is_found_out(way: Way) -> None:
    with pytest.raises(RuntimeError, match="did not train"):
        Training(way, SETTING).check()


def test_arms_train_as_much_as_they_say() -> None:
    sizes = {way: trained(way).sizes() for way in ways()}
    model = SETTING.model()
    everything = sum(p.numel() for p in model.parameters())
    neuron_map = Training(FULL, SETTING).map
    rest = everything - sum(p.numel() for name, p in model.named_parameters() if name not in neuron_map.rest)
    few, many = (neuron_map.elements(NeuronMask.random(neuron_map, share, 0).bits) for share in (0.01, 0.28))
    layers = QUICK.layers * (4 * 2 * QUICK.hidden + 3 * (QUICK.hidden + QUICK.mlp))
    parameters = {way: found["parameters"] for way, found in sizes.items()}
    assert parameters[FULL] == everything
    assert parameters[FREEZE_FEW] == parameters[SELECTIVE_FEW] == few
    assert parameters[FREEZE_MANY] == parameters[SELECTIVE_MANY] == many + rest
    assert parameters[LORA] == LORA_RANK * layers
    assert parameters[SHIRA] % layers == 0
    assert abs(parameters[SHIRA] - few) < layers
    # AdamW keeps two numbers of 4 bytes for each parameter it steps, and 4 bytes for each tensor.
    assert sizes[FREEZE_MANY]["neuron_optimizer"] == sizes[FULL]["neuron_optimizer"]
    assert sizes[SELECTIVE_MANY]["neuron_optimizer"] == pytest.approx(8 * many, abs=4 * len(list(model.parameters())))


def test_arms_are_enforced_by_what_they_say() -> None:
    engines = {way: Training(way, SETTING).engine() for way in ways()}
    assert engines[FULL] == ""
    assert engines[FREEZE_FEW] == engines[FREEZE_MANY] == "mask, plain"
    assert engines[SELECTIVE_MANY] == f"{7 * QUICK.layers} selective layers"
    assert "selective layers" in engines[SELECTIVE_FEW]
    assert (engines[LORA], engines[SHIRA]) == ("PEFT LORA", "PEFT SHIRA")


def test_what_is_not_merged_is_not_taken_for_the_base_model() -> None:
    with pytest.raises(RuntimeError, match="not built as the base model is"):
        require_ordinary(Training(SELECTIVE_FEW, SETTING).model, SETTING.model())


@pytest.mark.slow
def test_the_command_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = [FULL, SELECTIVE_FEW, LORA]
    found = run(tmp_path, "--arms", SELECTIVE_FEW.label, LORA.label)
    assert list(found["seconds"]) == [*(way.label for way in arms), "again"]
    assert all([len(steps) for steps in rounds] == [1, 1] for rounds in found["seconds"].values())
    assert list(found["peak"]) == [way.label for way in arms]
    assert list(found["inference"]["seconds"]) == ["base", "merged", "again"]
    assert "Goals" in capsys.readouterr().out


@pytest.mark.slow
def test_the_crossover_runs(tmp_path: Path) -> None:
    found = run(tmp_path, "--crossover", "0.5")
    assert found["crossover"]["0.5"]["engines"] == {
        "full": "", "freeze 50%": "mask, plain", "selective 50%": "14 selective layers",
    }  # fmt: skip


def run(folder: Path, *options: str) -> dict[str, Any]:
    selective.main(["--quick", *options, "--json", str(folder / "found.json")])
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found
