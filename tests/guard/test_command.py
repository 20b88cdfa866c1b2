"""`neurofreeze gate` from settings to a folder that guards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import neurofreeze as nf
from neurofreeze.cli import main
from neurofreeze.config.gate import GateConfig, ReactionConfig, TriggerConfig
from neurofreeze.data.examples import Example
from neurofreeze.errors import ConfigError, GuardError
from neurofreeze.guard.making import make_gate, parted
from neurofreeze.models.load import load_model
from tests.guard.scripted import batch


def test_a_gate_is_made_and_guards(
    tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["+trigger.options.layer=1", "reaction.name=flag", "steps=2", "target=0.1", "batch_size=32"]
    assert main(["gate", f"model={tiny_checkpoint}", *settings]) == 0
    assert "benign triggered" in capsys.readouterr().out
    model = load_model(tiny_checkpoint)
    gate = nf.Gate.from_pretrained(tmp_path / "gates" / "probe", model=model, tokenizer=tiny_tokenizer)
    assert gate.calibration is not None
    assert gate.calibration.benign.count <= 0.1 * gate.calibration.benign.total
    assert not set(gate.trigger.prompts) & set(gate.calibration.prompts)
    gate.generate(**batch(tiny_tokenizer))
    assert len(gate.events) == 3
    assert main(["gate", f"model={tiny_checkpoint}", "trigger.name=lif"]) == 2
    assert "expert is None; expected a model, since trigger lif needs one" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["gate", "model=not-even-looked-for", f"output={tmp_path / 'file' / 'gate'}"]) == 2
    assert f"{tmp_path / 'file'} is no such folder" in capsys.readouterr().err


def test_what_is_unknown_is_refused(gated: Any, tiny_tokenizer: Any, harmful: Any, benign: Any) -> None:
    for config, message in (
        (GateConfig(trigger=TriggerConfig(options={"depth": 1})), "trigger.options.depth is unknown"),
        (
            GateConfig(trigger=TriggerConfig(options={"layer": 0}), reaction=ReactionConfig(options={"alpha": 1})),
            "reaction.options.alpha is unknown",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            make_gate(config, gated, tiny_tokenizer, harmful, benign)
    for make in (
        lambda: TriggerConfig(name="spike"),
        lambda: TriggerConfig(name="probe", mask="m"),
        lambda: ReactionConfig(name="laugh"),
        lambda: GateConfig(fit_share=1.0),
        lambda: GateConfig(steps=0),
        lambda: GateConfig(target=1.0),
        lambda: GateConfig(target=None),
        lambda: GateConfig(reaction=ReactionConfig(name="blend")),
        lambda: GateConfig(expert="e"),
    ):
        with pytest.raises(ConfigError, match="expected"):
            make()


def test_a_reaction_out_of_range_is_refused_before_anything_is_fitted(
    gated: Any, tiny_tokenizer: Any, harmful: Any, benign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(gated), "forward", lambda *_, **__: pytest.fail("the model ran"))
    wrong = GateConfig(reaction=ReactionConfig(name="reflect", options={"draft": -1}))
    with pytest.raises(GuardError, match="draft is -1"):
        make_gate(wrong, gated, tiny_tokenizer, harmful, benign)


def test_parting_is_the_same_for_the_same_seed() -> None:
    examples = [Example.of(str(number)) for number in range(10)]
    first, second = parted(examples, 0.3, seed=4)
    assert (len(first), len(second)) == (3, 7)
    assert sorted([*first, *second], key=examples.index) == examples
    assert parted(examples, 0.3, seed=4) == (first, second) != parted(examples, 0.3, seed=5)
