"""`neurofreeze monitor`: a reference from calibration prompts, then a stream with alarms where it changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.cli import main
from neurofreeze.data import read
from neurofreeze.errors import DataError
from neurofreeze.guard.monitor import Reference
from neurofreeze.guard.monitor.drift import Drift
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config, load_tokenizer
from neurofreeze.neurons import NeuronMap
from tests.tracking.test_tensorboard import scalars

DETECTION = ["detection.false_alarm_rate=0.05", "detection.run_length=100", "detection.window=20"]


def write(path: Path, prompts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts to calibrate on, a stream that turns into something else, and a mask."""
    found = tmp_path_factory.mktemp("monitored")
    prompts = [example.prompt for example in read("bundled:instructions/align", responses=False)]
    write(found / "calibrate.jsonl", prompts[:60])
    write(found / "stream.jsonl", [*prompts[60:80], *["zxq " * 40 + str(number) for number in range(10)]])
    NeuronMask.random(NeuronMap.of(load_config(tiny_checkpoint)), 0.1, seed=0).save_pretrained(found / "mask")
    return found


@pytest.fixture(scope="module")
def made(folder: Path, tiny_checkpoint: Path) -> list[str]:
    """The arguments of the command, after it has made the reference once."""
    arguments = [f"model={tiny_checkpoint}", f"reference={folder / 'reference'}", f"prompts={folder / 'stream.jsonl'}"]
    making = [f"calibrate={folder / 'calibrate.jsonl'}", f"mask={folder / 'mask'}", f"output={folder / 'rows.jsonl'}"]
    assert main(["monitor", *arguments, *making, *DETECTION, "tracker=tensorboard"]) == 0
    return arguments


def test_the_change_raises_alarms(made: list[str], folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == list(range(1, 31))
    assert all("mahalanobis" in row["alarms"] for row in rows[20:])
    assert sum("mahalanobis" in row["alarms"] for row in rows[:20]) <= 6
    text = (folder / "rows.jsonl").read_text() + (folder / "reference" / "reference.json").read_text()
    assert "zxq" not in text


def test_the_tracker_has_the_rows(made: list[str], folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    found = scalars(folder)
    assert found["monitor/psi"] == [(row["prompt"], pytest.approx(row["psi"])) for row in rows]
    alarms = [(row["prompt"], float("mahalanobis" in row["alarms"])) for row in rows]
    assert found["monitor/alarms/mahalanobis"] == alarms


def test_the_reference_is_used_again(made: list[str], folder: Path, capsys: Any) -> None:
    assert main(["monitor", *made, "output=again.jsonl", *DETECTION]) == 0
    out = capsys.readouterr().out
    assert "calibrating" not in out
    assert "prompt 21: mahalanobis" in out
    assert "30 prompts" in out
    again = [json.loads(line) for line in Path("again.jsonl").read_text().splitlines()]
    first = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [{**row, "time": 0} for row in again] == [{**row, "time": 0} for row in first]


def test_prompts_of_the_stream_may_not_be_calibration_prompts(made: list[str], folder: Path, capsys: Any) -> None:
    making = [f"calibrate={folder / 'stream.jsonl'}", f"mask={folder / 'mask'}", "reference=other"]
    assert main(["monitor", *made, *making]) == 1
    assert "is in both calibrate and prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["detection.false_alarm_rate=0.01"], "a false-alarm rate of 0.01 needs at least 99 held-out prompts"),
        (["reference=mask/neuron_mask_config.json"], "reference is 'mask/neuron_mask_config.json'; expected a folder"),
        (["output=mask"], "output is 'mask'; expected a file; this is a folder"),
        (["output=calibrate.jsonl/rows.jsonl"], "output is 'calibrate.jsonl'; expected a folder"),
    ],
)
def test_what_cannot_come_to_anything_is_refused_before_anything_is_made(
    made: list[str],
    folder: Path,
    settings: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    making = ["reference=other", "calibrate=calibrate.jsonl", "mask=mask", "output=other.jsonl"]
    assert main(["monitor", *made, *making, *settings]) in (1, 2)
    found = capsys.readouterr()
    assert message in found.err
    assert "calibrating" not in found.out
    assert not (folder / "other").exists()
    assert not (folder / "other.jsonl").exists()


@pytest.mark.parametrize("command", ["monitor", "chat", "drift"])
def test_another_chat_template_is_refused_wherever_prompts_are_watched(
    made: list[str], folder: Path, tiny_checkpoint: Path, tmp_path: Path, command: str, capsys: Any
) -> None:
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    template = model / "chat_template.jinja"
    template.write_text(f"Be kind. {template.read_text(encoding='utf-8')}", encoding="utf-8")
    message = "the reference was made with the chat template"
    if command == "drift":
        with pytest.raises(DataError, match=message):
            Drift(Reference.from_pretrained(folder / "reference"), [], load_tokenizer(model))
    else:
        given = made[1:] if command == "monitor" else [f"reference={folder / 'reference'}"]
        assert main([command, f"model={model}", *given, *DETECTION]) == 1
        assert message in capsys.readouterr().err


def test_no_reference_and_nothing_to_make_it_of(made: list[str], capsys: Any) -> None:
    assert main(["monitor", *made, "reference=other"]) == 2
    assert "pass calibrate=" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["pooling=max", "detection.false_alarm_rate=1", "neurons=0", "detection.window=1"])
def test_settings_out_of_range(made: list[str], wrong: str, capsys: Any) -> None:
    assert main(["monitor", *made, wrong]) == 2
    assert wrong.partition("=")[0] in capsys.readouterr().err
