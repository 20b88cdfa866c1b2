"""result.json: the numbers are those of the stages, and an objective is found or named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neurofreeze.config.schema import Config
from neurofreeze.errors import RunError
from neurofreeze.stages.context import Run
from neurofreeze.tracking import result
from neurofreeze.tracking.result import objective, read_result, write_result

from .folders import finished


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return finished(tmp_path / "run", {"start": 9, "none": 2, "safety": 7})


def test_the_numbers_are_those_of_the_stages(run: Run) -> None:
    write_result(run, "run", 0)
    found = json.loads((run.folder.path / "result.json").read_text(encoding="utf-8"))
    assert (found["command"], found["exit_code"]) == ("run", 0)
    assert 0 <= found["seconds"] < 60
    expected = {
        "start.refusals": 0.9,
        "none.refusals": 0.2,
        "safety.refusals": 0.7,
        "safety.over_refusals": 0.4,
        "safety.margin": 1.0,
        "safety.domain_loss": 2.7,
        "safety.general_loss": 3.0,
        "safety.degenerate": 0.0,
        "safety.frozen": 0.15,
        "safety.frozen_elements": 1500,
        "safety.changed": 0,
        "safety.loss": 1.5,
        "safety.seconds": 2.5,
        "none.frozen": 0.0,
        "select.neurons": 15,
        "select.total": 100,
    }
    assert {name: found["metrics"].get(name) for name in expected} == pytest.approx(expected)
    assert found["counts"]["safety.refusals"] == [7, 10]
    assert "start.frozen" not in found["metrics"]
    assert "none.changed" not in found["metrics"], "nothing was frozen, so nothing was verified"


def test_a_command_that_measured_nothing_has_a_result_too(tmp_path: Path) -> None:
    run = Run(Config(), tmp_path / "run")
    assert read_result(run.folder.path) is None
    write_result(run, "select", 1)
    found = read_result(run.folder.path)
    assert found is not None
    assert (found["exit_code"], found["metrics"]) == (1, {})


def test_other_ranks_write_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurofreeze.distributed.rank", lambda: 1)
    write_result(run, "run", 0)
    assert not (run.folder.path / result.FILE).exists()


def test_an_objective_is_a_number_of_the_result(run: Run) -> None:
    write_result(run, "run", 0)
    found = read_result(run.folder.path)
    assert found is not None
    assert objective(found, "safety.refusals") == 0.7
    with pytest.raises(RunError, match=r"objective is 'safety\.refusal', .* expected one of .*safety\.refusals"):
        objective(found, "safety.refusal")


def test_a_failed_command_has_no_objective(run: Run) -> None:
    write_result(run, "run", 3)
    found = read_result(run.folder.path)
    assert found is not None
    with pytest.raises(RunError, match=r"run failed with exit code 3"):
        objective(found, "safety.refusals")


@pytest.mark.parametrize("content", ["{", "[]", '{"metrics": {}}'])
def test_what_is_no_result_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / result.FILE).write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"result\.json"):
        read_result(tmp_path)
