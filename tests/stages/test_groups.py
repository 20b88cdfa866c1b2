"""SSAH's groups pruned one by one, and found again after longer training of the frozen arm, on the tiny checkpoint."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from neurofreeze.data import read
from neurofreeze.evaluation.likelihood import losses, refusal_margins
from neurofreeze.mask import NeuronMask
from neurofreeze.methods.ssah import GROUPS, Ratios
from neurofreeze.models.load import load_tokenizer
from neurofreeze.stages import pruning
from neurofreeze.strategies import select
from neurofreeze.strategies.wifv import WIFV
from tests.methods.test_ssah import slow_groups

from .runs import STEPS, metrics, neurofreeze

CHECKS = (
    "validate=groups",
    "validate.draws=1",
    "validate.migration=true",
    "training.frozen_times=2",
    "arms=[none,safety]",
)
RATIOS = {"exclusive_safety": 0.1, "exclusive_utility": 0.2, "redundant": 0.25}


def run(command: str, model: Path, folder: Path, *overrides: str) -> int:
    ratios = (f"method.ratios.{name}={ratio}" for name, ratio in RATIOS.items())
    return neurofreeze(command, model, folder, "method=ssah", *ratios, *overrides)


def result(folder: Path, stage: str) -> Any:
    return json.loads((folder / "stages" / f"{stage}.json").read_text(encoding="utf-8"))["result"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "groups"
    assert run("run", tiny_checkpoint, folder, *CHECKS) == 0
    return folder


@pytest.fixture(scope="module")
def groups(finished: Path) -> dict[str, np.ndarray]:
    return dict(load_file(finished / "selection" / "groups.safetensors"))


def test_every_group_is_pruned_beside_as_many_random_neurons(finished: Path, groups: dict[str, np.ndarray]) -> None:
    rows = {row["label"]: row for row in result(finished, "validate-groups")["pruned"]}
    order = [(name, f"random like {name}, 0") for name in ("ESU", "EUU", "CU", "RU")]
    assert list(rows) == ["whole", *(label for pair in order for label in pair)]
    for name, random in order:
        count = sum(int((codes == GROUPS.index(name)).sum()) for codes in groups.values())
        assert rows[name]["neurons"] == rows[random]["neurons"] == count > 0
        assert rows[name]["outcomes"] != rows[random]["outcomes"] != rows["whole"]["outcomes"]


def test_pruning_a_group_is_removing_its_columns(
    finished: Path, groups: dict[str, np.ndarray], tiny_checkpoint: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype="auto").eval()
    for layer, block in enumerate(model.model.layers):
        channels, heads = (groups[f"layers.{layer}.{kind}"] == GROUPS.index("CU") for kind in ("mlp", "attention"))
        with torch.no_grad():
            block.mlp.down_proj.weight[:, torch.from_numpy(channels)] = 0
            block.self_attn.o_proj.weight[:, torch.from_numpy(heads.repeat(6))] = 0
    rows = {row["label"]: row["outcomes"] for row in result(finished, "validate-groups")["pruned"]}
    tokenizer = load_tokenizer(tiny_checkpoint)
    harmful = read("bundled:harmful/evaluation", responses=False, limit=4)
    general = read("bundled:instructions/evaluation", limit=4)
    # bfloat16: zeroed activations and zeroed weights may be added up in another order
    assert refusal_margins(model, tokenizer, harmful, 32) == pytest.approx(rows["CU"]["margins"], abs=0.1)
    assert losses(model, tokenizer, general, 32, 48) == pytest.approx(rows["CU"]["general_losses"], abs=0.02)
    assert rows["CU"]["general_losses"] != pytest.approx(rows["whole"]["general_losses"], abs=0.02)


@pytest.mark.parametrize("arm", ["none", "safety"])
def test_migration_is_what_grouping_the_arm_anew_gives(arm: str, finished: Path, groups: dict[str, np.ndarray]) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "arms" / arm, dtype="auto").eval()
    tokenizer = load_tokenizer(finished / "arms" / arm)
    safety, utility = (
        select(model, tokenizer, {"safety": read(f"bundled:{name}/calibration")}, WIFV())
        for name in ("harmful", "instructions")
    )
    after = slow_groups(safety, utility, Ratios(**RATIOS))
    mask = NeuronMask.from_pretrained(finished / "selection" / "safety")
    counts = np.zeros((3, 4, 4), dtype=int)  # all, in the mask, others
    for (site, neuron), name in after.items():
        pair = groups[site][neuron], GROUPS.index(name)
        counts[0][pair] += 1
        counts[1 if mask.bits[site][neuron] else 2][pair] += 1
    found = result(finished, f"migration-{arm}")["transitions"]
    assert [part["counts"] for part in found] == counts.tolist()
    assert found[1]["of"] == ("frozen neurons" if arm == "safety" else "of the safety mask, not frozen here")
    assert counts[0].trace() < counts[0].sum() == 152


def test_the_frozen_arm_trains_twice_as_long_and_the_report_says_so(finished: Path) -> None:
    rows = [row for row in metrics(finished) if "arm" in row and "loss" in row]
    steps = {arm: [row["global_step"] for row in rows if row["arm"] == arm] for arm in ("none", "safety")}
    assert steps == {"none": list(range(1, STEPS + 1)), "safety": list(range(1, 2 * STEPS + 1))}
    page = (finished / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert (
        f"not trained equally long: “no freezing” for {STEPS} steps and “safety neurons” for {2 * STEPS} steps" in page
    )


def test_both_are_printed_and_in_the_report(
    finished: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    for said in ("The model without each group", "random like ESU, 0", "Groups after fine-tuning", "Mistral-7B-v0.2"):
        assert said in page
    assert run("evaluate", tiny_checkpoint, finished, *CHECKS) == 0
    printed = capsys.readouterr().out
    assert "migration-safety: complete, reused" in printed
    assert "migration safety: all neurons: " in printed
    assert "frozen neurons: " in printed
    assert run("select", tiny_checkpoint, finished, *CHECKS) == 0
    printed = capsys.readouterr().out
    assert "validate-groups: complete, reused" in printed
    assert "in the paper, ESU of Llama-2-7B-Chat: 1.3 % pruned, attacks 10.0 to 66.0 %" in printed


@pytest.mark.slow
def test_interrupted_pruning_goes_on_to_the_same_outcomes(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "stages" / "validate-groups.json").unlink()
    calls: list[Any] = []
    interrupts = iter([False] * 20 + [True])

    def values(*args: Any) -> list[Any]:
        if next(interrupts, False):
            signal.raise_signal(signal.SIGINT)
        calls.append(args[3])
        return measured(*args)

    measured = pruning.values
    monkeypatch.setattr(pruning, "values", values)
    assert run("select", tiny_checkpoint, folder, *CHECKS) == 130
    assert run("select", tiny_checkpoint, folder, *CHECKS) == 0
    states = len(result(finished, "validate-groups")["pruned"])
    assert len(calls) == states * len({str(part) for part in calls}), "a batch was done twice"
    assert result(folder, "validate-groups") == result(finished, "validate-groups")


@pytest.mark.slow
def test_two_ranks_prune_as_one_process_does(finished: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ranks = ("cluster=torchrun", "cluster.ranks_per_node=2", "backend=ddp")
    assert run("select", tiny_checkpoint, tmp_path / "shared", *CHECKS[:2], *ranks) == 0
    assert result(tmp_path / "shared", "validate-groups") == result(finished, "validate-groups")


@pytest.mark.parametrize("check", ["validate=groups", "validate.migration=true"])
def test_a_method_without_groups_is_refused(
    check: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert neurofreeze("run", tiny_checkpoint, tmp_path, "method=top", check) == 2
    assert "no groups, since method is top" in capsys.readouterr().err
