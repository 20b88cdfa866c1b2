"""freeze.rest in a run: it is in the masks, in the checkpoints and in what verification compares; or refused early."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from neurofreeze.cli import main
from neurofreeze.mask import NeuronMask
from neurofreeze.rest import KINDS

from .runs import neurofreeze, weights


def test_a_run_holds_what_is_in_no_neuron_and_verify_compares_it_untold(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    for command in ("select", "train"):
        assert neurofreeze(command, tiny_checkpoint, folder, "freeze=rest", "arms=[safety]") == 0
    masks = [NeuronMask.from_pretrained(folder / "selection" / arm) for arm in ("safety", "random")]
    assert [mask.config.rest for mask in masks] == [KINDS, KINDS]
    base, tuned = (weights(path) for path in (tiny_checkpoint, folder / "arms/safety"))
    rest = [name for name in base if "norm" in name or "embed" in name]
    assert len(rest) > 5
    assert all(tuned[name] == base[name] for name in rest)
    assert sum(tuned[name] != base[name] for name in base) > 5

    paths = [f"base={tiny_checkpoint}", f"tuned={folder / 'arms/safety'}", f"mask={folder / 'selection/safety'}"]
    assert main(["verify", *paths]) == 0
    spoilt = load_file(folder / "arms/safety/model.safetensors")
    spoilt["model.norm.weight"][0] += 1
    save_file(spoilt, folder / "arms/safety/model.safetensors", metadata={"format": "pt"})
    assert main(["verify", *paths]) == 1
    assert "model.norm.weight: 1 of " in capsys.readouterr().out
    assert json.loads((folder / "arms/safety/verification.json").read_text())["rest"] == list(KINDS)

    assert neurofreeze("select", tiny_checkpoint, folder, "freeze=train", "arms=[safety]") == 1
    assert "already holds select with other settings (rest" in capsys.readouterr().err


def test_tied_embeddings_that_freeze_by_one_name_are_refused_before_anything_is_trained(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("freeze.rest.embeddings=freeze", "alignment.mode=always")
    assert neurofreeze("run", tiny_checkpoint, tmp_path / "run", *settings) == 2
    assert "model.embed_tokens.weight is embeddings and lm_head at once" in capsys.readouterr().err
    assert not (tmp_path / "run" / "stages").exists()


def test_what_is_no_choice_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert neurofreeze("run", tiny_checkpoint, tmp_path / "run", "freeze.rest.norms=hold") == 2
    assert "freeze.rest.norms is 'hold'; expected train or freeze" in capsys.readouterr().err


def test_a_method_that_teaches_refusals_takes_no_rest(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert neurofreeze("run", tiny_checkpoint, tmp_path / "run", "method=nest", "freeze=rest") == 2
    assert "expected train for every kind, since method=nest freezes no choice" in capsys.readouterr().err
