"""Jobs on this machine: child processes and torchrun, in the foreground and in the background."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import neurofreeze as nf
from neurofreeze.cli import main
from neurofreeze.errors import ConfigError, RunError
from neurofreeze.launcher import processes
from neurofreeze.launcher.job import FILE, Job, typed
from neurofreeze.launcher.ranks import connected
from neurofreeze.launcher.record import Record
from neurofreeze.launcher.state import Status
from neurofreeze.launcher.submit import submit

from .interpreter import interpreter

ONE = ["cluster=torchrun", "cluster.ranks_per_node=1"]  # a child process; no torchrun, as backend is plain
WAITS = 'echo "begins"; touch "$3/began"; while true; do sleep 0.05; done'


def wait_until(found: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_ranks_are_started_by_torchrun_which_lets_them_save() -> None:
    config = typed("{backend: {name: ddp}, cluster: {name: torchrun, ranks_per_node: 4, python: /env/python}}")
    words = list(processes.command(Job("train", Path("/runs/a b"), config, "")))
    assert words[:3] == ["/env/python", "-m", "torch.distributed.run"]
    options = {"--standalone", "--nproc-per-node=4", "--max-restarts=0", "--shutdown-timeout=600"}
    assert options | {"--signals-to-handle=SIGINT,SIGTERM,SIGHUP,SIGUSR1"} == set(words[3:-3])
    assert words[-3:] == ["-m", "neurofreeze.launcher.rank", "/runs/a b"]


def test_a_rank_that_is_shown_one_gpu_takes_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Slurm's --gpus-per-task."""
    taken: list[int] = []
    for name, found in {"is_available": lambda: True, "device_count": lambda: 1, "set_device": taken.append}.items():
        monkeypatch.setattr(f"torch.cuda.{name}", found)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *_, **__: None)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "3")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "4")
    with connected(typed("{backend: {name: ddp}, cluster: {name: torchrun, ranks_per_node: 4}}")):
        assert (os.environ["RANK"], os.environ["LOCAL_RANK"]) == ("3", "0")
    assert taken == [0]
    assert os.environ["LOCAL_RANK"] == "3"


def test_the_child_s_exit_code_is_the_command_s(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = 'echo "$OMP_NUM_THREADS" "$@"; exit 7'
    assert main(["train", *ONE, "cluster.cpus_per_rank=3", interpreter(tmp_path, body), "name=a"]) == 7
    assert capfd.readouterr().out == f"3 -m neurofreeze.launcher.rank {Path('runs/a').absolute()}\n"
    job = Job.load(Path("runs/a"))
    assert (job.command, job.config.cluster.cpus_per_rank) == ("train", 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_handed_to_the_ranks(number: signal.Signals, tmp_path: Path) -> None:
    body = f"trap 'echo told >> \"$3/told\"; exit 9' {number.name[3:]}\n{WAITS}"
    words = [sys.executable, "-m", "neurofreeze", "train", *ONE, interpreter(tmp_path, body), "name=a"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as process:
        wait_until(Path("runs/a/began").exists, "the rank did not begin")
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    assert Path("runs/a/told").read_text(encoding="utf-8") == "told\n"  # once


def test_a_signal_that_comes_while_the_job_is_being_started_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(job: Job, log: Path | None = None) -> subprocess.Popen[bytes]:
        process = started(job, log)
        wait_until((job.folder / "began").exists, "the rank did not begin")
        signal.raise_signal(signal.SIGUSR1)
        return process

    started = processes.start
    monkeypatch.setattr(processes, "start", start)
    body = f"trap 'echo told >> \"$3/told\"; exit 9' USR1\n{WAITS}"
    assert main(["train", *ONE, interpreter(tmp_path, body), "name=a"]) == 128 + signal.SIGUSR1
    assert Path("runs/a/told").read_text(encoding="utf-8") == "told\n"


def test_a_run_in_this_process_is_seen_and_takes_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Status] = []

    def work(job: Job) -> int:
        seen.append(nf.Submitted(job.folder).status())
        return submit(job)

    monkeypatch.setattr("neurofreeze.launcher.work.work", work)
    job = Job("train", Path("run"), typed("{}"), "{}")
    job.folder.mkdir()
    with pytest.raises(RunError, match=f"run has process {os.getpid()}, which has not ended; wait for it"):
        submit(job)
    assert [(found.state, found.job) for found in seen] == [("running", f"process {os.getpid()}")]
    assert list(job.folder.iterdir()) == []


def test_what_a_killed_run_has_noted_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurofreeze.launcher.work.work", lambda _: 0)
    Path("runs/a").mkdir(parents=True)
    for note in (
        '{"pid": 1, "host": "' + socket.gethostname() + '", "started": 0}',
        '{"pid": 1, "host": "far"}',
        '{"p',
    ):
        Path("runs/a/working.json").write_text(note, encoding="utf-8")
        assert main(["train", "name=a"]) == 0
        assert not Path("runs/a/working.json").exists()


def test_a_background_job_is_seen_and_cancelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = nf.launch("train", [interpreter(tmp_path, WAITS)], name="a", seed=3)
    assert job.folder == Path("runs/a").absolute()
    assert Job.load(job.folder).config.seed == 3
    wait_until((job.folder / "began").exists, "the rank did not begin")
    record = Record.read(job.folder)
    assert record is not None
    assert job.status().state == "running"
    assert job.status().job == f"process {record.pid}"
    assert main(["train", *ONE, "name=a"]) == 1
    assert f"{job.folder} has process {record.pid}, which has not ended; wait for it" in capsys.readouterr().err
    assert main(["report", "name=a"]) == 1  # in this process: it would leave its own settings for the job to go on with
    assert f"{job.folder} has process {record.pid}, which has not ended; wait for it" in capsys.readouterr().err
    assert Job.load(job.folder).command == "train"
    assert nf.Submitted(job.folder).cancel()
    assert job.wait(poll_seconds=0.05) == 1
    assert not job.cancel()
    assert job.status().state == "interrupted"
    assert main(["logs", str(job.folder)]) == 0
    assert capsys.readouterr().out.endswith("begins\n")


def test_another_process_with_the_same_number_is_left_alone(tmp_path: Path) -> None:
    """Numbers of processes are used again."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            record = Record.of_process(stranger.pid)
            (tmp_path / FILE).write_text(json.dumps({"command": "train", "overrides": []}), encoding="utf-8")
            Record(pid=record.pid, host=record.host, started=(record.started or 0) - 60).write(tmp_path)
            assert not nf.Submitted(tmp_path).cancel()
            assert psutil.Process(stranger.pid).status() != psutil.STATUS_ZOMBIE
            Record(pid=record.pid, host="elsewhere", started=record.started).write(tmp_path)
            with pytest.raises(nf.RunError, match="of elsewhere, not of this machine"):
                nf.Submitted(tmp_path).cancel()
        finally:
            stranger.kill()


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("verify", [], "command is 'verify'; expected one of run, select"),
        ("train", ["fractoin=0.1"], "fractoin"),
        ("train", ["fraction=2"], "fraction is 2.0; expected a number in"),
        ("train", ["seed=many"], "could not be converted to Integer"),
    ],
)
def test_a_wrong_launch_starts_nothing(command: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        nf.launch(command, overrides, name="a")
    assert not Path("runs").exists()
