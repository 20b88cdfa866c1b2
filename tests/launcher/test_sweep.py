"""Sweeps on this machine, and what Hydra's own options show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neurofreeze.cli import COMMANDS, main
from neurofreeze.launcher import slurm
from tests.test_cli import probe

from .interpreter import interpreter

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the console script does


def test_jobs_follow_one_another_and_a_failed_one_takes_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = 'mkdir "$3/../now" && rmdir "$3/../now"; grep ^fraction "$3/resolved.yaml"; [[ $3 != */1 ]]'
    assert main(["run", "fraction=0.05,0.15,0.2", "-m", "name=three", interpreter(tmp_path, body)]) == 1
    folder = Path("sweeps/three").absolute()
    out, err = capsys.readouterr()
    assert f"{folder}/1: failed with exit code 1, see logs/local.log in it" in out
    assert err == f"neurofreeze: 1 of 3 jobs failed: {folder}/1; `neurofreeze status {folder}` says more\n"
    for number, fraction in enumerate((0.05, 0.15, 0.2)):
        log = (folder / str(number) / "logs" / "local.log").read_text(encoding="utf-8")
        assert log == f"fraction: {fraction}\n"
    assert [job["folder"] for job in json.loads((folder / "sweep.json").read_text("utf-8"))["jobs"]] == ["0", "1", "2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_sweep_and_not_only_the_job(number: signal.Signals, tmp_path: Path) -> None:
    body = 'touch "$3/began"; until grep -q pid "$3/job.json"; do sleep 0.1; done; sleep 0.5; '
    body += 'kill -s "$(cat signal)" "$PPID"; exec sleep 20'
    (tmp_path / "signal").write_text(number.name[3:], encoding="utf-8")
    words = [sys.executable, "-m", "neurofreeze", "run", "-m", "seed=0,1", "name=two", interpreter(tmp_path, body)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 128 + number
    assert "the same command goes on from here" in done.stderr
    assert [path.parent.name for path in tmp_path.glob("sweeps/two/*/began")] == ["0"]


def test_cancelling_ends_the_sweep_and_not_only_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = 'touch "$3/began"; kill -s TERM $$; exec sleep 20'  # as `neurofreeze cancel` signals the job's process
    assert main(["run", "-m", "seed=0,1", "name=two", interpreter(tmp_path, body)]) == 143
    assert "the same command goes on from here" in capsys.readouterr().err
    assert [path.parent.name for path in Path("sweeps/two").glob("*/began")] == ["0"]


def test_a_sweep_of_which_a_job_still_runs_leaves_what_the_others_came_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def squeue(ids: list[str]) -> dict[str, slurm.SlurmJob]:
        return {"12_1": slurm.SlurmJob("RUNNING", 0, 0, "")} if "12_1" in ids else {}

    for name, fake in {"require": lambda: None, "sbatch": lambda _: "12", "available": lambda: True}.items():
        monkeypatch.setattr(slurm, name, fake)
    monkeypatch.setattr(slurm, "squeue", squeue)
    words = ["run", "-m", "seed=0,1", "name=two", "cluster=slurm"]
    assert main(words) == 0
    result = Path("sweeps/two/0/result.json")
    result.write_text('{"command": "run", "exit_code": 0, "metrics": {}}', encoding="utf-8")
    assert main(words) == 1
    assert "two/1 has job 12_1, which has not ended" in capsys.readouterr().err
    assert result.is_file()
    assert '"12_0"' in Path("sweeps/two/0/job.json").read_text(encoding="utf-8")


def test_an_optimising_sweep_takes_its_ranges_from_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "conf"
    (conf / "hydra" / "sweeper").mkdir(parents=True)
    (conf / "hydra" / "sweeper" / "ours.yaml").write_text(
        "defaults: [optuna, override sampler: random]\nn_trials: 2\nn_jobs: 1\ndirection: maximize\n"
        "sampler: {seed: 0}\nparams: {seed: 'range(1, 50)'}\n",
        encoding="utf-8",
    )
    body = """seed=$(sed -n 's/^seed: //p' "$3/resolved.yaml")
    echo '{"command": "run", "exit_code": 0, "metrics": {"a.b": '$seed'}}' > "$3/result.json" """
    settings = [f"hydra.searchpath=[file://{conf}]", "hydra/sweeper=ours", "name=best", interpreter(tmp_path, body)]
    assert main(["run", "--multirun", *settings]) == 2
    assert "objective is None; expected what the sweep optimises" in capsys.readouterr().err
    assert not Path("sweeps/best/0").exists()
    assert main(["run", "--multirun", *settings, "objective=a.b"]) == 0
    from omegaconf import OmegaConf

    seeds = [OmegaConf.load(Path("sweeps/best") / str(number) / "resolved.yaml").seed for number in range(2)]
    best = OmegaConf.load("sweeps/best/optimization_results.yaml")
    assert best.best_value == max(seeds)
    assert len(set(seeds)) == 2


@pytest.mark.parametrize(("experiment", "jobs"), [("seeds", 8), ("strategies", 8)])
def test_an_experiment_names_what_it_sweeps(experiment: str, jobs: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", f"experiment={experiment}", "cluster=slurm", "cluster.dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert f"#SBATCH --array=0-{jobs - 1}\n" in out
    assert f"#SBATCH --job-name=run-{experiment}\n" in out


@pytest.mark.parametrize("command", ["doctor", "verify", "compare"])
def test_other_commands_run_once(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--multirun"]) == 2
    assert f"{command} runs once; --multirun is for run, select, train" in capsys.readouterr().err


def test_a_folder_of_one_s_own_extends_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "conf"
    (conf / "cluster").mkdir(parents=True)
    ours = "defaults: [slurm]\nranks_per_node: 8\naccount: safety\nmodules: [cuda/13.0]\n"
    (conf / "cluster" / "ours.yaml").write_text(ours, encoding="utf-8")
    (conf / "ours").mkdir()
    (conf / "ours" / "long.yaml").write_text(
        "# @package _global_\ntraining: {steps: 900}\nmodel: llama\n", encoding="utf-8"
    )
    search = f"hydra.searchpath=[file://{conf}]"
    overrides = [search, "cluster=ours", "+ours=long", "cluster.nodes=2", "backend=ddp", "training.batch_size=16"]
    assert main(["train", *overrides, "alignment.training.batch_size=16", "cluster.dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n#SBATCH --account=safety\n" in out
    assert "module load cuda/13.0\n" in out
    code, out, _, imported = probe("train", "--cfg", "job", *overrides, "--resolve", "cluster.wait=true")
    assert (code, imported) == (0, "")
    assert "steps: 900\n" in out
    assert "model: llama\n" in out


def test_hydra_s_options_answer_without_torch() -> None:
    code, out, _, imported = probe("run", "--info", "defaults", "strategy=wanda")
    assert (code, imported) == (0, "")
    assert "strategy/wanda" in out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("neurofreeze tr", ["train"]),
        ("neurofreeze train strategy=w", ["strategy=wanda", "strategy=wifv"]),
        ("neurofreeze run cluster.no", ["cluster.nodes="]),
        ("neurofreeze logs fol", ["follow="]),
        ("neurofreeze ", [*COMMANDS]),
    ],
)
def test_the_shell_completes_commands_and_settings(
    line: str, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == expected


def test_completion_is_installed_for_this_program() -> None:
    words = [sys.executable, "-m", "neurofreeze", "--shell-completion", "install=bash"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    script = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    found = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p neurofreeze"], capture_output=True, text=True, check=True, timeout=20
    )
    assert "hydra_bash_completion neurofreeze" in found.stdout
