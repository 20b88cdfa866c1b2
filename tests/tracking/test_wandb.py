"""Weights & Biases, offline: what the library wrote is read back from its own file and compared with metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.stages.runs import metrics, neurofreeze

from . import wandb_file

pytestmark = pytest.mark.slow  # one whole run, which the tests share

SECRETS = {"HF_TOKEN": "planted-0001-in-the-environment", "BUCKET_PASSWORD": "planted-0002-in-a-setting"}


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a sweep in two sessions, with secrets in its environment and settings."""
    sweep = tmp_path_factory.mktemp("sweep")
    (sweep / "sweep.json").write_text("{}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(sweep)
        for name, secret in SECRETS.items():
            patch.setenv(name, secret)
        patch.delenv("WANDB_MODE", raising=False)
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("NETRC", str(sweep / "none"))
        settings = [
            "tracker=wandb",
            "arms=[none,safety]",
            f"tracker.tags=[{SECRETS['HF_TOKEN']}]",
            f"cluster.setup=['export BUCKET_PASSWORD={SECRETS['BUCKET_PASSWORD']}']",
        ]
        for command in ("select", "run"):
            assert neurofreeze(command, tiny_checkpoint, sweep / "3", *settings) == 0
    return sweep / "3"


def test_history_is_metrics_jsonl_row_for_row(run: Path) -> None:
    found = [row for session in wandb_file.sessions(run) for row in wandb_file.history(session)]
    rows = metrics(run)
    assert len(rows) > 10
    assert found == [_named(row) for row in rows]


def test_both_sessions_are_one_run_of_the_sweep(run: Path) -> None:
    records = [wandb_file.run_record(session) for session in wandb_file.sessions(run)]
    assert [record.job_type for record in records] == ["select", "run"]
    assert {record.run_id for record in records} == {json.loads((run / "wandb.json").read_text())["id"]}
    assert {record.run_group for record in records} == {run.parent.name}
    assert {record.display_name for record in records} == {"quickstart-3"}
    assert {record.project for record in records} == {"neurofreeze"}


def test_each_arm_has_its_own_steps(run: Path) -> None:
    steps = wandb_file.steps(wandb_file.sessions(run)[1])
    assert steps["train/none/*"] == "train/none/global_step"
    assert steps["train/safety/*"] == "train/safety/global_step"
    for arm in ("none", "safety"):
        found = [row["global_step"] for row in metrics(run) if row["stage"] == "train" and row["arm"] == arm]
        assert found == sorted(found) == [1, 2, 3, 4]


def test_the_settings_are_there_without_their_secrets(run: Path) -> None:
    config = wandb_file.config(wandb_file.sessions(run)[1])
    assert config["training"]["steps"] == 4
    assert config["fraction"] == 0.15
    assert config["cluster"]["setup"] == ["export BUCKET_PASSWORD=[redacted]"]
    assert "training.steps=4" in config["overrides"]


def test_no_file_of_the_library_and_no_report_holds_a_secret(run: Path) -> None:
    files = [path for path in (run / "wandb").rglob("*") if path.is_file()]
    assert len(files) > 4
    for path in [*files, run / "report.html"]:
        for secret in SECRETS.values():
            assert secret.encode() not in path.read_bytes(), path


def test_masks_and_report_are_artifacts(run: Path) -> None:
    found = wandb_file.artifacts(wandb_file.sessions(run)[1])
    assert found["quickstart-3-report"] == {"report.html"}
    assert found["quickstart-3-mask-safety"] == {"README.md", "neuron_mask.safetensors", "neuron_mask_config.json"}


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl under the names that docs/tracking.md gives."""
    prefix = "/".join(row[key] for key in ("stage", "arm") if key in row)
    found = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= {f"{prefix}/{key}/{inner}": item for inner, item in value.items()}
        elif key not in ("stage", "arm"):
            found[f"{prefix}/{key}"] = value
    return found
