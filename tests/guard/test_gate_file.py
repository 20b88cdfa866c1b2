"""A gate's folder: what is written comes back, and what is damaged or for another model is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import neurofreeze as nf
from neurofreeze.data.examples import Example
from neurofreeze.errors import GuardError, NeuroFreezeWarning
from neurofreeze.guard.gate_file import CONFIG, WEIGHTS
from neurofreeze.guard.identity import identity
from neurofreeze.guard.reactions import Blend, Flag, Reflect, Refuse
from neurofreeze.guard.triggers import LifTrigger, NeuronTrigger, ProbeTrigger
from neurofreeze.models.load import load_model
from tests import tiny
from tests.guard.scripted import batch


@pytest.fixture(scope="module")
def gates(gated: Any, tiny_tokenizer: Any, expert: Any, harmful: list[Example], benign: list[Example]) -> list[Any]:
    neurons = NeuronTrigger.fit(gated, tiny_tokenizer, harmful[:6], benign[:6], count=3, pool="max")
    probe = ProbeTrigger.fit(gated, tiny_tokenizer, harmful[:6], benign[:6], layer=0, kind="mean-difference")
    found = [
        nf.Gate(gated, tiny_tokenizer, neurons, Refuse("No."), steps=2),
        nf.Gate(gated, tiny_tokenizer, probe, Reflect(draft=3, cautious="revise"), steps=2),
        nf.Gate(gated, tiny_tokenizer, LifTrigger(tau=4.0), Blend(0.3, lasting=None), steps=None, expert=expert),
    ]
    for gate in found[:2]:
        gate.calibrate(harmful[6:], benign[6:], target=0.2)
    return found


@pytest.fixture
def folder(gates: list[Any], tmp_path: Path) -> Path:
    return gates[0].save_pretrained(tmp_path / "gate")


def load(folder: Path, gated: Any, tokenizer: Any, **options: Any) -> Any:
    return nf.Gate.from_pretrained(folder, model=gated, tokenizer=tokenizer, **options)


def test_a_round_trip(gates: list[Any], gated: Any, tiny_tokenizer: Any, expert: Any, tmp_path: Path) -> None:
    for gate in gates:
        gate.save_pretrained(tmp_path / gate.trigger.name)
        back = load(tmp_path / gate.trigger.name, gated, tiny_tokenizer, expert=expert)
        assert (back.reaction, back.steps, back.threshold) == (gate.reaction, gate.steps, gate.threshold)
        assert back.calibration == gate.calibration
        assert back.trigger.settings() == gate.trigger.settings()
        for found in (gate, back):
            found.generate(**batch(tiny_tokenizer))
        assert back.events == gate.events
        assert sorted(path.name for path in (tmp_path / gate.trigger.name).iterdir()) == [CONFIG, WEIGHTS]
    text = (tmp_path / "neurons" / CONFIG).read_text()
    assert "harmful" in json.loads(text)["calibration"]["digests"]
    assert "somebody" not in text, "prompts are there as digests only"


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        found = json.loads((folder / CONFIG).read_text())
        change(found)
        (folder / CONFIG).write_text(json.dumps(found))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / CONFIG).unlink(), "cannot be read"),
        (lambda f: (f / WEIGHTS).unlink(), "incomplete"),
        (lambda f: (f / CONFIG).write_text("{"), "is not JSON"),
        (lambda f: (f / CONFIG).write_text("[]"), "holds a list"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-4]), "changed or cut"),
        (lambda f: (f / WEIGHTS).write_bytes(bytes(8) + (f / WEIGHTS).read_bytes()[8:]), "changed or cut"),
        (edited(lambda c: c.update(format_version=2)), "format_version 2, expected 1"),
        (edited(lambda c: c.update(more=1)), "'more' is unknown"),
        (edited(lambda c: c.pop("steps")), "'steps' is missing"),
        (edited(lambda c: c.update(steps="8")), "'steps' .* is a str"),
        (edited(lambda c: c.update(steps=0)), "steps is 0"),
        (edited(lambda c: c["trigger"].update(name="pickle")), "found 'pickle', expected one of neurons, probe, lif"),
        (edited(lambda c: c["trigger"].update(name="probe")), "'probe' has the settings"),
        (edited(lambda c: c["trigger"]["settings"].update(pool="sum")), "pool is 'sum'"),
        (edited(lambda c: c["reaction"].update(name="nothing")), "found 'nothing', expected one of flag"),
        (edited(lambda c: c["reaction"]["settings"].update(shout=True)), "malformed settings"),
        (edited(lambda c: c["reaction"].pop("settings")), "expected a name and settings"),
        (edited(lambda c: c.update(threshold=c["threshold"] + 9)), "one of them was edited"),
        (edited(lambda c: c.update(threshold=float("nan"), calibration=None)), "'threshold' in .* is nan"),
        (edited(lambda c: c.update(threshold=float("inf"), calibration=None)), "'threshold' in .* is inf"),
        (edited(lambda c: c.update(threshold=10**400, calibration=None)), "'threshold' in .* is 10"),
        (edited(lambda c: c["trigger"].update(name=["probe"])), r"found \['probe'\], expected one of"),
        (edited(lambda c: c["calibration"].update(threshold=10**400)), "calibration is malformed"),
        (edited(lambda c: c["calibration"].update(roc=[[1]])), "calibration is malformed"),
    ],
)
def test_a_damaged_folder_is_refused(
    gated: Any, tiny_tokenizer: Any, folder: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(folder)
    with pytest.raises(GuardError, match=message):
        load(folder, gated, tiny_tokenizer)


def test_a_gate_for_another_model_is_refused(gated: Any, tiny_tokenizer: Any, folder: Path) -> None:
    other = tiny.model("llama", num_hidden_layers=3, vocab_size=len(tiny_tokenizer))
    with pytest.raises(GuardError, match="the model has layers 3, the gate was made for 2"):
        load(folder, other, tiny_tokenizer)
    tuned = copy.deepcopy(gated)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.01)
    with pytest.raises(GuardError, match="fine-tuned, or another revision"):
        load(folder, tuned, tiny_tokenizer)
    with pytest.warns(NeuroFreezeWarning, match="false-positive rate is not known"):
        gate = load(folder, tuned, tiny_tokenizer, other_weights=True)
    gate.generate(**batch(tiny_tokenizer))


def test_a_gate_for_another_chat_template_is_refused(gated: Any, tiny_tokenizer: Any, folder: Path) -> None:
    other = copy.deepcopy(tiny_tokenizer)
    other.chat_template = f"Be kind. {other.chat_template}"
    with pytest.raises(GuardError, match="the gate was made with the chat template"):
        load(folder, gated, other)
    load(folder, gated, copy.deepcopy(tiny_tokenizer))


def test_the_expert_must_be_the_gates_own(
    gates: list[Any], gated: Any, tiny_tokenizer: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    gates[2].save_pretrained(tmp_path / "lif")
    other = tiny.model("llama", seed=8, vocab_size=len(tiny_tokenizer), max_position_embeddings=512)
    with pytest.raises(GuardError, match="the expert's weights are not those"):
        load(tmp_path / "lif", gated, tiny_tokenizer, expert=other)
    with pytest.raises(GuardError, match="no name for it; give expert="):
        load(tmp_path / "lif", gated, tiny_tokenizer)
    named = load_model(tiny_checkpoint)
    nf.Gate(gated, tiny_tokenizer, LifTrigger(), Flag(), expert=named).save_pretrained(tmp_path / "named")
    back = load(tmp_path / "named", gated, tiny_tokenizer)
    assert identity(back.expert) == identity(named)


def test_a_model_is_the_same_at_another_precision_and_not_with_other_weights() -> None:
    model = tiny.model("llama", dtype=torch.float32)
    known = identity(model)["fingerprint"]
    assert identity(copy.deepcopy(model).to(torch.bfloat16))["fingerprint"] == known
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    assert identity(model)["fingerprint"] != known
    with pytest.raises(GuardError, match="not in memory"):
        identity(model.to("meta"))
