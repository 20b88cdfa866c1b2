"""What only libraries, strategies, folders or the chat template can tell is told before anything is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import tiny

from .runs import neurofreeze


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+strategy.options.scaled=true"], "strategy 'wifv' has no option 'scaled'; expected one of standardize"),
        (["method=safeneuron", "+method.safeneuron.contrast.tau=3"], "strategy 'contrast' has no option 'tau'"),
        (["strategy=change", "strategy.options.reference=nowhere"], "reference is 'nowhere'; expected the folder of a"),
        (["strategy=safe_layers", "strategy.options.first=1", "strategy.options.last=9"], "last is 9; expected at mo"),
        (["training.optimizer=adam"], "training.optimizer is 'adam'; expected one of adamw_torch"),
        (["alignment.training.scheduler=flat"], "alignment.training.scheduler is 'flat'; expected one of linear"),
        (["monitor=probes", "monitor.reference=nowhere"], "monitor.reference is 'nowhere'; expected a folder with"),
    ],
)
def test_a_setting_that_is_not_known_is_refused_before_the_model_is_aligned(
    overrides: list[str],
    message: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert neurofreeze("run", tiny_checkpoint, tmp_path / "run", "alignment.mode=always", *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "stages").exists()
    assert not list((tmp_path / "run").glob("aligned*"))


def test_a_reference_with_other_neurons_is_refused_before_the_model_is_aligned(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.model("llama", intermediate_size=72).config.save_pretrained(tmp_path / "other")
    overrides = ["alignment.mode=always", "strategy=change", f"strategy.options.reference={tmp_path / 'other'}"]
    assert neurofreeze("run", tiny_checkpoint, tmp_path / "run", *overrides) == 2
    assert "other has other neurons than the model; expected a checkpoint of the same" in capsys.readouterr().err
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize("role", ["train", "harmful"])
def test_conversations_that_the_chat_template_does_not_take_are_refused_before_the_model_is_aligned(
    role: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = tmp_path / "model", tmp_path / "rows.jsonl"
    shutil.copytree(tiny_checkpoint, model)
    template = (model / "chat_template.jinja").read_text()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns') }}{% endif %}"
    (model / "chat_template.jinja").write_text(refusing + template)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"messages": [{**turns[0], "content": f"Hi {number}"}, turns[1]]} for number in range(20)]
    rows.append({"messages": [{"role": "system", "content": "Be brief."}, *turns]})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["alignment.mode=always", f"data.{role}={data}", "evaluation.limit=null"]
    assert neurofreeze("run", model, tmp_path / "run", *overrides) == 1
    found = capsys.readouterr().err
    assert f"data.{role}: the model's chat template takes no conversation of system, user" in found
    assert "No system turns; change these conversations" in found
    assert not (tmp_path / "run" / "stages").exists()


def test_a_strategy_s_folder_may_be_gone_once_the_neurons_are_chosen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    reference.symlink_to(tiny_checkpoint)
    overrides = ["strategy=change", f"strategy.options.reference={reference}", "arms=[safety]"]
    assert neurofreeze("select", tiny_checkpoint, tmp_path / "run", *overrides) == 0
    reference.unlink()
    assert neurofreeze("train", tiny_checkpoint, tmp_path / "run", *overrides) == 0
