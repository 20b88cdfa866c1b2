"""Commands alone and out of order, in folders that hold something else, and on checkpoints that were tampered with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from neurofreeze.checkpoints import open_weights
from neurofreeze.cli import main
from neurofreeze.data import read
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.verification import weights_fingerprint

from .runs import neurofreeze, weights


def flip_one_frozen_bit(run: Path, arm: str) -> str:
    """Flip the lowest bit of one frozen element of an arm's checkpoint; returns the parameter's name."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    path = run / "arms" / arm / "model.safetensors"
    mask = NeuronMask.from_pretrained(run / "selection" / arm)
    selection = mask.select(NeuronMap.of(AutoConfig.from_pretrained(run / "arms" / arm)))
    name = next(name for name in selection if name.endswith("down_proj.weight"))
    tensors = load_file(path)
    bits = tensors[name].view(torch.int16)
    bits[0, int(selection[name].index[-1])] ^= 1
    save_file(tensors, path, metadata={"format": "pt"})
    return name


def test_verify_finds_a_finished_run_intact(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"hydra.run.dir={copied}"]) == 0
    out = capsys.readouterr().out
    assert out.count("intact") == 2
    assert "CHANGED" not in out


@pytest.mark.parametrize("arm", ["random", "safety"])
def test_verify_finds_a_single_flipped_bit(copied: Path, capsys: pytest.CaptureFixture[str], arm: str) -> None:
    name = flip_one_frozen_bit(copied, arm)
    assert main(["verify", f"hydra.run.dir={copied}"]) == 1
    out = capsys.readouterr().out
    assert "1 CHANGED in 1 parameters" in out
    assert f"{name}: 1 of " in out
    assert json.loads((copied / "arms" / arm / "verification.json").read_text(encoding="utf-8"))["ok"] is False


def test_verify_takes_two_checkpoints_and_a_mask(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask, output = f"mask={finished / 'selection' / 'safety'}", f"output={tmp_path / 'found.json'}"
    good = [f"base={tiny_checkpoint}", f"tuned={finished / 'arms' / 'safety'}", mask, output]
    assert main(["verify", *good]) == 0
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["ok"] is True
    bad = [f"base={tiny_checkpoint}", f"tuned={finished / 'arms' / 'none'}", mask, output]
    assert main(["verify", *bad]) == 1
    assert "CHANGED" in capsys.readouterr().out


def test_verify_needs_an_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"hydra.run.dir={tmp_path / 'empty'}"]) == 1
    assert "has no trained arm to verify; run `neurofreeze train` first" in capsys.readouterr().err


def test_verify_asks_for_the_start_if_the_run_does_not_tell_it_any_more(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "stages" / "align.json").unlink()
    assert main(["verify", f"hydra.run.dir={copied}"]) == 1
    assert "align.json is gone, which says what the arms began with; give base=" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "first"), [("train", "select"), ("report", "select")])
def test_a_command_too_early_names_the_one_before(
    command: str, first: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert neurofreeze(command, tiny_checkpoint, tmp_path / "run") == 1
    assert f"run `neurofreeze {first}` first" in capsys.readouterr().err
    assert not (tmp_path / "run" / "arms").exists()


def test_report_needs_an_evaluation(copied: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "stages" / "evaluate-random.json").unlink()
    assert neurofreeze("report", tiny_checkpoint, copied) == 1
    assert "no complete evaluate-random stage; run `neurofreeze evaluate` first" in capsys.readouterr().err


def test_evaluate_leaves_untrained_arms_out(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert neurofreeze("evaluate", tiny_checkpoint, tmp_path / "run", "arms=[safety]") == 0
    assert "evaluate safety: not trained, left out" in capsys.readouterr().out
    assert [path.stem for path in (tmp_path / "run" / "stages").glob("evaluate-*")] == ["evaluate-start"]


def test_another_fraction_in_the_same_folder_is_refused(
    copied: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert neurofreeze("run", tiny_checkpoint, copied, "fraction=0.3") == 1
    assert "fraction was 0.15, is 0.3" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}


def test_what_was_made_with_other_settings_is_neither_trained_with_evaluated_nor_reported(
    copied: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = tmp_path / "chosen"
    shutil.copytree(copied / "selection", chosen / "selection")
    (chosen / "stages").mkdir()
    for stage in ("align", "select"):
        shutil.copy(copied / "stages" / f"{stage}.json", chosen / "stages")
    assert neurofreeze("train", tiny_checkpoint, chosen, "fraction=0.3") == 1
    assert "holds select with other settings (fraction was 0.15, is 0.3)" in capsys.readouterr().err
    assert not (chosen / "arms").exists()
    assert neurofreeze("report", tiny_checkpoint, copied, "fraction=0.3") == 1
    assert "holds select with other settings (fraction was 0.15, is 0.3)" in capsys.readouterr().err
    other = ["training.learning_rate=1e-3", "overwrite=true"]  # before `train` with it
    assert neurofreeze("evaluate", tiny_checkpoint, copied, *other) == 1
    assert "train-none with other settings (training.learning_rate was 0.005, is 0.001)" in capsys.readouterr().err
    assert neurofreeze("report", tiny_checkpoint, copied, *other) == 1
    assert "make it anew first with `neurofreeze train` and overwrite=true" in capsys.readouterr().err


def test_overwrite_redoes_what_the_fraction_changes(
    copied: Path, finished: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["fraction=0.3", "overwrite=true", "arms=[none,safety]"]
    assert neurofreeze("run", tiny_checkpoint, copied, *overrides) == 0
    out = capsys.readouterr().out
    assert "train-none: complete, reused" in out
    assert NeuronMask.from_pretrained(copied / "selection" / "safety").count == round(0.3 * 12) + round(0.3 * 140)
    assert weights(copied / "arms" / "safety") != weights(finished / "arms" / "safety")
    assert json.loads((copied / "verification.json").read_text(encoding="utf-8"))["ok"] is True
    assert "fraction: 0.3" in (copied / "resolved.yaml").read_text(encoding="utf-8")


def test_training_on_an_evaluation_prompt_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = read("bundled:harmful/evaluation", responses=False)[0].prompt.upper()
    rows = [{"prompt": text, "response": "Yes."} for text in (twin, *map(str, range(20)))]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = tmp_path / "run"
    assert neurofreeze("run", tiny_checkpoint, folder, "data.train=train.jsonl", "evaluation.limit=null") == 1
    assert "is in both data." in capsys.readouterr().err
    assert not (folder / "stages").exists()


def test_a_model_that_does_not_refuse_is_aligned_first(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    overrides = ["alignment.mode=auto", "alignment.training.steps=2", "alignment.training.learning_rate=5e-3"]
    assert neurofreeze("select", tiny_checkpoint, folder, *overrides) == 0
    assert "refuses 0/30" in capsys.readouterr().out
    assert weights(folder / "aligned") != weights(tiny_checkpoint)
    mask = NeuronMask.from_pretrained(folder / "selection" / "safety")
    assert mask.config.fingerprint == weights_fingerprint(folder / "aligned", mask)
    assert mask.config.fingerprint != weights_fingerprint(tiny_checkpoint, mask)


def test_a_model_is_not_aligned_where_that_is_switched_off(finished: Path) -> None:
    assert not (finished / "aligned").exists()
    marker = json.loads((finished / "stages" / "align.json").read_text(encoding="utf-8"))
    assert marker["result"]["aligned"] is False


def test_the_weights_are_those_of_a_checkpoint_folder(finished: Path) -> None:
    with open_weights(finished / "arms" / "safety") as found:
        assert "model.layers.0.mlp.down_proj.weight" in found
