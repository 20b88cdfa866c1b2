"""What is told of a run from its files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neurofreeze.cli import main
from neurofreeze.errors import RunError
from neurofreeze.launcher import rank
from neurofreeze.launcher.folders import run_folders
from neurofreeze.launcher.job import Job, typed
from neurofreeze.launcher.record import Record
from neurofreeze.launcher.state import exit_code, status, statuses
from neurofreeze.tracking.result import write_failure

SETTINGS = "{training: {steps: 8}, alignment: {mode: never}}"
ROWS = [
    {"stage": "train", "arm": "none", "global_step": 8, "loss": 1.0, "attempt": 1},
    {"stage": "train", "arm": "safety", "global_step": 2, "loss": 3.0, "attempt": 1},
    {"stage": "train", "arm": "safety", "global_step": 2, "refusal_rate": 0.75, "attempt": 1},
    {"stage": "train", "arm": "safety", "global_step": 3, "frozen_intact": True, "attempt": 1},
    {"stage": "train", "arm": "safety", "global_step": 3, "loss": 2.5, "attempt": 1},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder in the middle of an arm."""
    tmp_path = tmp_path / "run"
    Job("train", tmp_path, typed(SETTINGS), SETTINGS).save()
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "metrics.jsonl").write_text(text + '{"stage": "tra', encoding="utf-8")  # while a row is written
    return tmp_path


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurofreeze.launcher.slurm.available", lambda: False)


def test_the_last_of_each_number_of_the_arm_in_training_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = status(run)
    assert (found.arm, found.step, found.steps, found.loss) == ("safety", 3, 8, 2.5)
    assert (found.frozen, found.refusal_rate, found.restarts) == (True, 0.75, 0)
    assert main(["status", str(run)]) == 0
    words = capsys.readouterr().out.split()
    assert words[:7] == ["run", "state", "arm", "step", "loss", "frozen", "refused"]  # no job, no restarts
    assert words[-7:] == ["run", "unfinished", "safety", "3/8", "2.500", "intact", "75%"]


def test_a_frozen_bit_that_changed_is_loud(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.write(json.dumps({**ROWS[3], "frozen_intact": False}) + "\n")
    assert main(["status", str(run)]) == 0
    assert "CHANGED" in capsys.readouterr().out


def test_the_state_is_read_from_what_the_job_left(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurofreeze.launcher.slurm.available", lambda: True)
    monkeypatch.setattr("neurofreeze.launcher.slurm.squeue", lambda _: {})  # it has forgotten
    assert status(run).state == "unfinished"  # of a process that left no record
    Record(job_id="12_3").write(run)
    found = status(run)
    assert (found.state, found.job, exit_code(run)) == ("interrupted", "job 12_3", 1)
    write_failure(run, "train", ValueError("a wrong\nturn"))
    write_failure(run, "train", ValueError("lost another rank"))
    found = status(run)
    assert (found.state, found.reason, exit_code(run)) == ("failed", "a wrong turn", 1)
    (run / "result.json").write_text('{"command": "train", "exit_code": 0, "metrics": {}}', encoding="utf-8")
    assert (status(run).state, exit_code(run)) == ("complete", 0)


def test_a_script_that_is_submitted_again_by_hand_is_the_job_from_then_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["rank", str(run)])
    monkeypatch.setattr("neurofreeze.launcher.rank._work_on", lambda _: 0)
    for name in ("RANK", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    settings = "{cluster: {name: slurm}, alignment: {mode: never}}"
    Job("train", run, typed(settings), settings).save()
    Record(job_id="12").write(run)
    write_failure(run, "train", ValueError("a wrong turn"))
    for number, recorded, left in (("12", "12", True), ("13", "13", False)):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        assert rank.main() == 0
        assert Record.read(run) == Record(job_id=recorded)
        assert (run / "result.json").is_file() == left
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    assert rank.main() == 0
    assert Record.read(run) == Record(job_id="13")


def test_a_process_of_another_machine_may_still_run(run: Path) -> None:
    Record(pid=1, host="elsewhere", started=0.0).write(run)
    found = status(run)
    assert (found.state, found.reason) == ("unknown", "it is a process of elsewhere; look there")
    write_failure(run, "train", ValueError("a wrong turn"))
    assert status(run).state == "failed"


def test_a_slurm_job_without_a_result_may_still_run_where_there_is_no_slurm(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Record(job_id="12_3").write(run)
    found = status(run)
    assert (found.state, found.reason) == ("unknown", "it is a job of Slurm, which is not on this machine")
    assert main(["train", f"hydra.run.dir={run}"]) == 1
    assert "has job 12_3, and no Slurm on this machine knows whether it has ended" in capsys.readouterr().err
    write_failure(run, "train", ValueError("a wrong turn"))
    assert (status(run).state, exit_code(run)) == ("failed", 1)


def test_files_answer_where_slurm_does_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: object) -> None:
        raise RunError("squeue did not answer within 60 s")

    monkeypatch.setattr("neurofreeze.launcher.slurm.available", lambda: True)
    monkeypatch.setattr("neurofreeze.launcher.slurm.squeue", silent)
    Record(job_id="12_3").write(run)
    (found,) = statuses([run])
    assert (found.state, found.reason, found.step) == ("unknown", "squeue did not answer within 60 s", 3)
    (run / "result.json").write_text('{"command": "train", "exit_code": 0, "metrics": {}}', encoding="utf-8")
    assert [found.state for found in statuses([run])] == ["complete"]


def test_a_folder_that_is_neither_run_nor_sweep_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "it's a=b, [c] \\"
    odd.mkdir()
    for command in ("status", "logs", "cancel"):
        assert main([command, str(odd)]) == 1
        assert f"neurofreeze: {odd} holds neither a run nor a sweep" in capsys.readouterr().err
    (odd / "sweep.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"sweep\.json is damaged"):
        run_folders(odd)


def test_a_folder_must_be_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the console script does
    assert main(["status"]) == 2
    assert capsys.readouterr().err.startswith("neurofreeze: run has no value, and none can be guessed; pass run=...")


def test_logs_of_a_sweep_are_shown_beside_runs_without_any(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "logs").mkdir()
    (run / "logs" / "job.out").write_text("hello\n", encoding="utf-8")
    jobs = [{"folder": name} for name in ("waits", run.name)]
    (run.parent / "sweep.json").write_text(json.dumps({"jobs": jobs}), encoding="utf-8")
    assert main(["logs", str(run.parent)]) == 0
    waits, log = run.parent / "waits", run / "logs" / "job.out"
    assert capsys.readouterr().out == f"== {waits} has no log yet\n== {log}\nhello\n"


def test_logs_of_a_run_without_any(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(run)]) == 1
    err = capsys.readouterr().err
    assert "has no log yet; expected one of a Slurm job or of nf.launch" in err
    assert "`neurofreeze status" in err
