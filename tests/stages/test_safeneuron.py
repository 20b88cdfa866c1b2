"""`neurofreeze run method=safeneuron` in two rounds on the tiny checkpoint: what is frozen, kept, pruned, refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.cli import main
from neurofreeze.commands.settings import compose_once
from neurofreeze.config.schema import DataConfig
from neurofreeze.data import read
from neurofreeze.mask import NeuronMask
from neurofreeze.stages.datasets import Datasets
from neurofreeze.stages.folder import RunFolder
from neurofreeze.training import dpo
from neurofreeze.verification import verify

from .runs import STEPS, metrics, neurofreeze, weights

pytestmark = pytest.mark.slow

# A random model hardly tells harm from anything else.
SETTINGS = (
    "method=safeneuron",
    "method.safeneuron.rounds=2",
    "method.safeneuron.prune_rounds=true",
    "+method.safeneuron.contrast.tau_es=0.5",
    "+method.safeneuron.contrast.tau_sas=1.0",
    "training.max_length=96",
    "evaluation.limit=2",
)
PRUNED = ("prune-start", "prune-safeneuron-T0", "prune-safeneuron-T1", "prune-dpo-T0", "prune-dpo-T1")


def run(command: str, model: Path, folder: Path, *overrides: str) -> int:
    return neurofreeze(command, model, folder, *SETTINGS, *overrides)


def result(folder: Path, stage: str) -> Any:
    return json.loads((folder / "stages" / f"{stage}.json").read_text(encoding="utf-8"))["result"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "safeneuron"
    assert run("run", tiny_checkpoint, folder) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_round_adds_what_it_finds_to_what_is_frozen(finished: Path) -> None:
    first, second, found = (
        NeuronMask.from_pretrained(finished / name)
        for name in ("selection/safeneuron", "selection/safeneuron-T1", "identified/safeneuron-T0")
    )
    assert second == first | found
    rounds = result(finished, "train-safeneuron")["rounds"]
    assert [each["frozen_neurons"] for each in rounds] == [first.count, second.count]
    assert [each["added_neurons"] for each in rounds] == [first.count, second.count - first.count]
    assert result(finished, "select")["neurons"] == first.count < first.total


def test_what_t0_froze_has_the_start_s_bits_at_the_end(finished: Path, tiny_checkpoint: Path) -> None:
    mask = finished / "selection" / "safeneuron"
    found = verify(tiny_checkpoint, finished / "arms" / "safeneuron", mask)
    assert found.ok
    assert found.trainable_changed > 0.5 * found.trainable
    assert not verify(tiny_checkpoint, finished / "arms" / "dpo", mask).ok
    assert result(finished, "verify-safeneuron")["changed"] == 0
    assert [each["changed"] for each in result(finished, "train-safeneuron")["rounds"]] == [0, 0]


def test_verify_finds_the_arm_in_the_run_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"hydra.run.dir={finished}"]) == 0
    assert f"{finished / 'arms' / 'safeneuron'}: " in capsys.readouterr().out


def test_only_the_last_round_s_checkpoint_is_kept(finished: Path) -> None:
    found = {path.parent.relative_to(finished) for path in finished.rglob("model.safetensors")}
    assert found == {Path("arms", "dpo"), Path("arms", "safeneuron")}


def test_arms_see_the_same_pairs_for_as_many_steps(finished: Path) -> None:
    rows = {
        arm: [row for row in metrics(finished) if row.get("stage") == "train" and row.get("arm") == arm]
        for arm in ("safeneuron", "dpo")
    }
    assert all([row["global_step"] for row in own] == list(range(1, 2 * STEPS + 1)) for own in rows.values())
    assert len({tuple(row["num_tokens"] for row in own) for own in rows.values()}) == 1
    assert [own[0]["loss"] for own in rows.values()] == [pytest.approx(0.6931, abs=1e-4)] * 2
    assert result(finished, "train-dpo")["pairs"] == {"safety": 77, "helpfulness": 180}
    assert [step for step, _ in result(finished, "train-dpo")["losses"]] == list(range(1, 2 * STEPS + 1))


def test_every_model_is_pruned_of_its_own_safety_neurons_and_of_random_ones(finished: Path) -> None:
    for stage in PRUNED:
        found = result(finished, stage)
        assert sorted(found["states"]) == ["random, same number", "safety neurons", "whole"]
        margins = [tuple(outcomes["margins"]) for outcomes in found["states"].values()]
        assert len(set(margins)) == 3, stage
    for name in ("safeneuron-T1", "dpo-T1"):
        assert result(finished, f"prune-{name}")["neurons"] == result(finished, f"identify-{name}")["neurons"]
    assert result(finished, "prune-start")["neurons"] == result(finished, "select")["neurons"]
    arm = result(finished, "evaluate-safeneuron")
    assert result(finished, "prune-safeneuron-T1")["states"]["whole"]["margins"] == arm["margins"]


def test_the_table_is_printed_and_in_the_report(
    copied: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", tiny_checkpoint, copied) == 0
    out = capsys.readouterr().out
    stages = {path.stem for path in (copied / "stages").iterdir()}
    # Of rounds before the last nothing is looked at once an arm is complete.
    within = {stage for stage in stages if stage.endswith("-T0") or stage in ("train-safeneuron-T1", "train-dpo-T1")}
    assert all(f"{stage}: complete, reused" in out for stage in stages - within)
    assert "without each model's own safety neurons" in out
    page = (copied / "report.html").read_text(encoding="utf-8")
    for said in ("Without each model's own safety neurons", "safeneuron, T0", "dpo, T1", "random, same number"):
        assert said in page
    assert "data.preferences" in page
    assert "data.train</" not in page


def test_an_interrupted_second_round_goes_on_to_the_same_bits(
    copied: Path, finished: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("train-safeneuron", "train-safeneuron-T0", "train-safeneuron-T1", "identify-safeneuron-T0"):
        (copied / "stages" / f"{stage}.json").unlink()
    shutil.rmtree(copied / "arms" / "safeneuron")
    original = RunFolder.log

    def log(self: RunFolder, row: dict[str, Any]) -> None:
        original(self, row)
        if row.get("global_step") == STEPS + 2:
            monkeypatch.setattr(RunFolder, "log", original)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunFolder, "log", log)
    assert run("train", tiny_checkpoint, copied, "arms=[safeneuron]") == 130
    assert (copied / "stages" / "train-safeneuron-T0.json").is_file()
    assert (copied / "rounds" / "safeneuron-T0" / "model.safetensors").is_file()
    assert run("train", tiny_checkpoint, copied, "arms=[safeneuron]") == 0
    assert weights(copied / "arms" / "safeneuron") == weights(finished / "arms" / "safeneuron")
    assert not (copied / "rounds" / "safeneuron-T0").exists()


def test_a_round_that_changed_a_frozen_bit_is_an_error(
    copied: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("train-safeneuron", "train-safeneuron-T0", "train-safeneuron-T1"):
        (copied / "stages" / f"{stage}.json").unlink()
    original = dpo.prefer
    monkeypatch.setattr(dpo, "prefer", lambda *args, **options: original(*args, **{**options, "mask": None}))
    assert run("train", tiny_checkpoint, copied, "arms=[safeneuron]") == 1
    assert "frozen elements of safeneuron-T0 changed" in capsys.readouterr().err
    assert not (copied / "stages" / "train-safeneuron-T0.json").exists()


def test_the_model_may_be_aligned_first_and_training_is_the_paper_s() -> None:
    config, _, _ = compose_once(["method=safeneuron"])
    assert config.alignment.mode == "auto"
    assert (config.arms, config.training.learning_rate, config.training.epochs) == (["safeneuron", "dpo"], 5e-6, 3)
    assert (config.training.weight_decay, config.training.scheduler) == (0.05, "cosine")
    assert (config.method.safeneuron.beta, config.method.safeneuron.safety_share) == (0.1, 0.3)


def test_pairs_may_share_prompts_with_alignment_but_not_with_evaluation(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Datasets.read(DataConfig(), align=True, replay=False, preferences=True, limit=2, seed=0)
    assert {e.key for e in found.alignment} & {e.key for e in found.preferences}
    row = {"prompt": read("bundled:harmful/evaluation", responses=False)[0].prompt, "chosen": "No.", "rejected": "Yes."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    planted = f"data.preferences.safety=[{tmp_path / 'pairs.jsonl'}]"
    assert run("select", tiny_checkpoint, tmp_path / "run", planted) == 1
    assert "is in both data.harmful and data.preferences" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("arms=[nest]", "['safeneuron', 'dpo']"),
        ("backend=ddp", "verified in one process only"),
        ("training.enforcement=selective", "auto or mask"),
        ("validate=prune", "in its own way"),
        ("method.safeneuron.rounds=0", "positive"),
        ("method.safeneuron.safety_share=0", "(0, 1]"),
        ("method.safeneuron.beta=0", "above 0"),
        ("+method.safeneuron.contrast.statistic=es", "es and sas are both taken"),
        ("+method.safeneuron.contrast.tau=3", "strategy 'contrast'"),
        ("method.safeneuron.contrast.tau_es=1e9 method.safeneuron.contrast.tau_sas=1e9", "0 of 152 neurons"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    override: str, said: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("select", tiny_checkpoint, tmp_path / "run", *override.split()) in (1, 2)
    assert said in capsys.readouterr().err
