"""The launcher on a real cluster: what is submitted runs there, is seen, waited for, requeued and cancelled.

A shell script takes the place of Python, so that each job takes a second; tests/slurm/test_training.py trains.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import neurofreeze as nf
from neurofreeze.cli import main
from neurofreeze.launcher.record import Record
from tests.launcher.interpreter import interpreter

from .cluster import SlurmCluster

pytestmark = pytest.mark.slow

Interpreter = Callable[[str], str]
NOTES = """
printf '%s\\n' "$(hostname)" "$RANK" "$LOCAL_RANK" "$WORLD_SIZE" "$LOCAL_WORLD_SIZE" "$MASTER_ADDR" \\
  "$MASTER_PORT" "$CUDA_VISIBLE_DEVICES" "$OMP_NUM_THREADS" "$EXTRA" > "$3/rank-$RANK"
"""
SLEEPS = "echo begins; touch $3/began-$RANK; exec sleep 120"


@pytest.fixture
def python(tmp_path: Path) -> Interpreter:
    """Makes an interpreter of a shell script; returns the setting that selects it."""
    return lambda body: interpreter(tmp_path, body)


FOUR_RANKS = ["cluster=slurm", "backend=ddp", "cluster.nodes=2", "cluster.ranks_per_node=2", "cluster.poll_seconds=0.2"]


def job_id(folder: str | Path) -> str:
    record = Record.read(Path(folder))
    assert record is not None
    assert record.job_id is not None
    return record.job_id


def wait_until(found: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_each_rank_knows_its_place_and_sees_its_gpus(slurm: SlurmCluster, python: Interpreter) -> None:
    more = ["cluster.gpus_per_node=2", "cluster.cpus_per_rank=2", "cluster.setup=['export EXTRA=\"a b\"']"]
    assert main(["train", *FOUR_RANKS, *more, python(NOTES), "cluster.wait=true", "name=places"]) == 0
    job = slurm.job(job_id("runs/places"))
    port = str(15000 + int(job["JobId"]) % 15000)
    for rank in range(4):
        node, local = divmod(rank, 2)
        found = (Path("runs/places") / f"rank-{rank}").read_text(encoding="utf-8").splitlines()
        assert found == [f"n{node + 1}", str(rank), str(local), "4", "2", "n1", port, "0,1", "2", "a b"]
    assert (job["NumNodes"], job["NumTasks"], job["CPUs/Task"], job["TresPerNode"]) == ("2", "4", "2", "gres:gpu:2")
    assert job["WorkDir"] == str(Path.cwd())
    assert job["Command"] == str(Path("runs/places/job.sbatch").absolute())


def test_the_exit_code_of_the_ranks_is_the_command_s(
    slurm: SlurmCluster,
    python: Interpreter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", *FOUR_RANKS, python("[ $RANK != 2 ] || exit 3"), "cluster.wait=true", "name=bad"]) == 3
    assert slurm.job(job_id("runs/bad"))["JobState"] == "FAILED"
    capsys.readouterr()
    assert main(["status", "runs/bad"]) == 0
    assert "failed: NonZeroExitCode" in " ".join(capsys.readouterr().out.split())


def test_a_killed_rank_ends_the_job(slurm: SlurmCluster, python: Interpreter) -> None:
    job = nf.launch("train", [*FOUR_RANKS, python(SLEEPS)], name="killed")
    wait_until(lambda: len(list(job.folder.glob("began-*"))) == 4, "ranks did not begin")
    victim = slurm.processes(job_id(job.folder), program="sleep")[3]
    started = time.monotonic()
    victim.kill()
    assert job.wait(poll_seconds=0.2) in (137, 143)  # of the one killed, or of those that srun ended for it
    assert time.monotonic() - started < 30
    assert not slurm.processes(job_id(job.folder), program="sleep")


def test_a_running_job_is_seen_and_followed_and_cancelled(
    slurm: SlurmCluster,
    python: Interpreter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = [*FOUR_RANKS, python(SLEEPS), "name=long"]
    assert main(["train", *overrides]) == 0
    folder = Path("runs/long")
    number = job_id(folder)
    out = " ".join(capsys.readouterr().out.split())
    assert out == f"job {number} in {folder.absolute()}; how it goes: neurofreeze status {folder.absolute()}"
    wait_until(lambda: len(list(folder.glob("began-*"))) == 4, "ranks did not begin")
    assert main(["status", f"run={folder}"]) == 0
    assert f"long job {number} running" in " ".join(capsys.readouterr().out.split())
    assert main(["train", *overrides]) == 1
    assert f"{folder.absolute()} has job {number}, which has not ended" in capsys.readouterr().err
    assert main(["cancel", str(folder)]) == 0
    assert f"job {number} cancelled" in capsys.readouterr().out
    slurm.wait_for(number, "CANCELLED")
    assert main(["cancel", str(folder)]) == 0
    assert "nothing to cancel" in capsys.readouterr().out
    assert main(["logs", str(folder), "follow=true"]) == 0
    assert capsys.readouterr().out.count("begins\n") == 4
    assert main(["status", str(folder)]) == 0
    assert "cancelled" in capsys.readouterr().out


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_a_signal_reaches_the_ranks_and_leaves_the_script(slurm: SlurmCluster, python, signal: str) -> None:
    body = f"trap 'touch $3/told-$RANK; exit 0' {signal}; touch $3/began-$RANK; while true; do sleep 0.1; done"
    job = nf.launch("train", [*FOUR_RANKS, python(body)], name="told")
    wait_until(lambda: len(list(job.folder.glob("began-*"))) == 4, "ranks did not begin")
    slurm.call("scancel", "--batch", f"--signal={signal}", job_id(job.folder))  # the script alone: it goes on waiting
    time.sleep(1)
    assert job.status().state == "running"
    slurm.call("scancel", f"--signal={signal}", job_id(job.folder))
    assert job.wait(poll_seconds=0.2) == 0
    assert len(list(job.folder.glob("told-*"))) == 4


def test_a_requeued_job_is_waited_for_and_counted(slurm: SlurmCluster, python: Interpreter) -> None:
    body = "echo turn; [ ! -e $3/began ] || exit 0; touch $3/began; sleep 120"
    job = nf.launch("train", ["cluster=slurm", python(body)], name="again")
    wait_until((job.folder / "began").exists, "the rank did not begin")
    slurm.scontrol("requeue", job_id(job.folder))
    slurm.release(job_id(job.folder))
    assert job.wait(poll_seconds=0.2) == 0
    assert (job.status().state, job.status().restarts) == ("complete", 1)
    (log,) = job.folder.glob("logs/*.out")
    assert log.read_text(encoding="utf-8").count("turn\n") == 2  # of both turns, one after the other


def test_a_wrong_partition_is_told_in_slurm_s_words(slurm: SlurmCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "cluster=slurm", "cluster.partition=nowhere"]) == 1
    assert "invalid partition specified: nowhere" in capsys.readouterr().err


def test_a_sweep_is_one_array_with_a_throttle(
    slurm: SlurmCluster,
    python: Interpreter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = ["--multirun", "strategy=wifv,random", "fraction=0.05,0.15", "name=four", "cluster=slurm"]
    settings = ["cluster.throttle=1", "cluster.poll_seconds=0.2", "cluster.wait=true"]
    body = 'pwd; mkdir "$3/../now" && sleep 0.3 && rmdir "$3/../now" && grep -E "^fraction" "$3/resolved.yaml"'
    assert main(["run", *sweep, *settings, python(body)]) == 0
    folder = Path("sweeps/four")
    content = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert (content["command"], [job["folder"] for job in content["jobs"]]) == ("run", ["0", "1", "2", "3"])
    swept = [{word for word in job["overrides"] if word.startswith(("str", "fr"))} for job in content["jobs"]]
    assert swept == [{f"strategy={s}", f"fraction={f}"} for s in ("wifv", "random") for f in ("0.05", "0.15")]
    ids = [job["job_id"].split("_") for job in content["jobs"]]
    assert len({array for array, _ in ids}) == 1
    assert [number for _, number in ids] == ["0", "1", "2", "3"]
    for number, fraction in enumerate((0.05, 0.15) * 2):
        (log,) = (folder / str(number)).glob("logs/*")
        assert log.read_text(encoding="utf-8").splitlines() == [str(Path.cwd()), f"fraction: {fraction}"]
    capsys.readouterr()
    assert main(["status", str(folder)]) == 0
    assert capsys.readouterr().out.count("complete") == 4

    assert main(["run", *sweep, *settings, python("[ $SLURM_ARRAY_TASK_ID != 2 ]")]) == 1
    assert f"1 of 4 jobs failed: {folder.absolute() / '2'}; " in capsys.readouterr().err

    sweep[1] = "strategy=wanda,random"
    assert main(["run", *sweep, *settings, python("true")]) == 2
    assert f"{folder.absolute() / '0'} holds another sweep's job (" in capsys.readouterr().err


def test_no_job_of_a_sweep_starts_if_one_is_wrong(
    slurm: SlurmCluster,
    python: Interpreter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "-m", "fraction=0.05,1.5", "cluster=slurm", "name=wrong", python("true")]) == 2
    err = capsys.readouterr().err
    assert "job 1 of the sweep (fraction=1.5 " in err
    assert "fraction is 1.5; expected a number in (0, 1]; no job was started" in err
    assert not (Path("sweeps/wrong") / "0").exists()
    assert main(["run", "-m", "cluster=slurm,local", "name=wrong"]) == 2
    assert "cluster differs between the jobs of the sweep" in capsys.readouterr().err
    assert slurm.call("squeue", "--noheader") == ""


def test_a_sweep_that_optimises_reads_each_job_s_number(slurm: SlurmCluster, python: Interpreter) -> None:
    """Four trials in batches of two; the number is the distance of fraction from 0.3."""
    body = r"""
    fraction=$(sed -n 's/^fraction: //p' "$3/resolved.yaml")
    value=$(awk "BEGIN {d = $fraction - 0.3; print d < 0 ? -d : d}")
    echo '{"command": "run", "exit_code": 0, "metrics": {"safety.distance": '$value'}}' > "$3/result.json"
    """
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"]
    sweeper += ["hydra.sweeper.direction=minimize", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=1"]
    settings = ["cluster=slurm", "cluster.poll_seconds=0.2", "objective=safety.distance", "name=best", python(body)]
    assert main(["run", "--multirun", *sweeper, "fraction=interval(0.1,0.9)", *settings]) == 0
    from omegaconf import OmegaConf

    folder = Path("sweeps/best")
    jobs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["jobs"]
    assert [job["job_id"].split("_")[1] for job in jobs] == ["0", "1", "2", "3"]
    assert len({job["job_id"].split("_")[0] for job in jobs}) == 2
    tried = [OmegaConf.load(folder / job["folder"] / "resolved.yaml").fraction for job in jobs]
    best = OmegaConf.load(folder / "optimization_results.yaml")
    assert best.best_params.fraction == min(tried, key=lambda fraction: abs(fraction - 0.3))
    assert best.best_value == pytest.approx(min(abs(fraction - 0.3) for fraction in tried), abs=1e-5)
