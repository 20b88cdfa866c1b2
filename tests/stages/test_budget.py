"""`neurofreeze run method=budget` on the tiny checkpoint: redundant units learn, and every other bit stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from neurofreeze.cli import main
from neurofreeze.mask import NeuronMask
from neurofreeze.methods.ssah import GROUPS

from .runs import STEPS, metrics, neurofreeze

pytestmark = pytest.mark.slow

ARMS = ("budget", "random", "full")
HEADS, KV_HEADS, WIDTH = 6, 2, 6  # of the tiny checkpoint; WIDTH channels a head
SETTINGS = ("method=budget", *(f"method.budget.learning_rates.{arm}=1e-2" for arm in ARMS))


def run(command: str, model: Path, folder: Path, *overrides: str) -> int:
    return neurofreeze(command, model, folder, *SETTINGS, *overrides)


def result(folder: Path, stage: str) -> Any:
    return json.loads((folder / "stages" / f"{stage}.json").read_text(encoding="utf-8"))["result"]


def trained(folder: Path, arm: str) -> dict[str, np.ndarray]:
    """Site -> bool [neurons], those that may train: all but the arm's mask."""
    return {site: ~bits for site, bits in NeuronMask.from_pretrained(folder / "selection" / arm).bits.items()}


def may_change(name: str, shape: tuple[int, ...], sites: dict[str, np.ndarray]) -> np.ndarray:
    """Element by element, by the layout of a Llama block and nothing of the library's."""
    found = np.zeros(shape, dtype=bool)
    parts = name.split(".")
    if len(parts) < 6:  # embeddings, norms, lm_head
        return found
    heads, channels = sites[f"layers.{parts[2]}.attention"], sites[f"layers.{parts[2]}.mlp"]
    served = heads.reshape(KV_HEADS, HEADS // KV_HEADS).all(1)  # a KV head trains if all its query heads do
    rows = {
        "gate_proj": channels,
        "up_proj": channels,
        "q_proj": heads.repeat(WIDTH),
        "k_proj": served.repeat(WIDTH),
        "v_proj": served.repeat(WIDTH),
    }
    if parts[4] in rows:
        found[rows[parts[4]]] = True
    elif len(shape) == 2:  # the bias of what writes belongs to no neuron
        found[:, {"down_proj": channels, "o_proj": heads.repeat(WIDTH)}[parts[4]]] = True
    return found


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").named_parameters())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "budget"
    assert run("run", tiny_checkpoint, folder) == 0
    return folder


def test_what_trains_are_the_redundant_units(finished: Path) -> None:
    groups = load_file(finished / "selection" / "groups.safetensors")
    for site, trains in trained(finished, "budget").items():
        np.testing.assert_array_equal(trains, groups[site] == GROUPS.index("RU"))
    counts = {
        kind: sum(int(t.sum()) for s, t in trained(finished, "budget").items() if kind in s)
        for kind in ("attention", "mlp")
    }
    assert counts == {"attention": round(0.2 * 12), "mlp": round(0.2 * 140)}


@pytest.mark.parametrize("arm", ["budget", "random"])
def test_every_bit_outside_those_neurons_stays(arm: str, finished: Path, tiny_checkpoint: Path) -> None:
    before, after = parameters(tiny_checkpoint), parameters(finished / "arms" / arm)
    assert before.keys() == after.keys()
    changed = free = 0
    for name, old in before.items():
        differs = (old.view(torch.int16) != after[name].view(torch.int16)).numpy()
        allowed = may_change(name, tuple(old.shape), trained(finished, arm))
        assert not (differs & ~allowed).any(), name
        changed, free = changed + int(differs.sum()), free + int(allowed.sum())
    assert changed > 0.9 * free > 0
    assert result(finished, f"train-{arm}")["optimized"] == free
    verified = result(finished, f"verify-{arm}")
    assert (verified["changed"], verified["frozen"]) == (0, sum(p.numel() for p in before.values()) - free)
    own = json.loads((finished / "verification.json").read_text(encoding="utf-8"))
    assert (own["tuned"] == str(finished / "arms" / arm)) == (arm == "budget")


def test_the_command_verifies_both_arms_that_freeze(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"hydra.run.dir={finished}"]) == 0
    out = capsys.readouterr().out
    assert out.count("intact") == 2
    assert [f"{finished / 'arms' / arm}: " in out for arm in ARMS] == [True, True, False]


def test_random_ones_are_others_but_as_many_at_every_site(finished: Path) -> None:
    own, random = (trained(finished, arm) for arm in ("budget", "random"))
    assert any((own[site] != random[site]).any() for site in own)
    assert all(own[site].sum() == random[site].sum() for site in own)


def test_full_fine_tuning_trains_everything(finished: Path, tiny_checkpoint: Path) -> None:
    before, after = parameters(tiny_checkpoint), parameters(finished / "arms" / "full")
    assert result(finished, "train-full")["optimized"] == sum(p.numel() for p in before.values())
    assert all((old != after[name]).any() for name, old in before.items() if "norm" not in name)


def test_arms_see_the_same_refusals_in_the_same_order(finished: Path) -> None:
    rows = {arm: [row for row in metrics(finished) if row.get("arm") == arm and "loss" in row] for arm in ARMS}
    assert all([row["global_step"] for row in own] == list(range(1, STEPS + 1)) for own in rows.values())
    assert len({own[0]["loss"] for own in rows.values()}) == 1
    assert len({own[-1]["loss"] for own in rows.values()}) == 3


def test_the_report_shows_the_arms_groups_and_what_they_were_taught(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    for said in ("redundant units only", "full fine-tuning", "data.alignment", "bit-identical", "redundant units"):
        assert said in page
    assert "data.train</" not in page


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("arms=[safety]", "['budget', 'random', 'full']"),
        ("method.budget.ratio=1", "between 0 and 1"),
        ("method.budget.learning_rates.full=0", "above 0"),
        ("training.frozen_times=2", "arms of equal length"),
        ("validate=prune", "freezes no choice"),
        ("strategy=contrast", "contrasts the two itself"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    override: str, said: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", tiny_checkpoint, tmp_path / "run", override) in (1, 2)
    assert said in capsys.readouterr().err
