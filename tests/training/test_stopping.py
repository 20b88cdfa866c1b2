"""Signals: training saves before it stops, whatever else comes; elsewhere a signal takes effect at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neurofreeze.launcher import processes
from neurofreeze.launcher.job import Job, typed
from neurofreeze.stages.rows import read_rows
from neurofreeze.training.stopping import SIGNALS, Stopped, StopSignals
from tests.stages.runs import neurofreeze, settings, weights

from .held import GO

HELD = Path(__file__).with_name("held.py")
ARM = ("arms=[none]", "training.steps=4")


@pytest.fixture(autouse=True)
def _without_nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def listen(work: Callable[[StopSignals], None]) -> None:
    """Do some work as a job does it."""
    signals = StopSignals()
    with signals.listening():
        work(signals)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_takes_effect_at_once(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught:
        listen(lambda _: signal.raise_signal(number))
    assert caught.value.code == 128 + number
    assert "the same command goes on from here" in str(caught.value)
    assert "saved" not in str(caught.value)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_waits_for_the_end_of_the_block(number: int) -> None:
    done = []

    def work(signals: StopSignals) -> None:
        with signals.deferred():
            signal.raise_signal(number)
            done.append(signals.requested)
        done.append(0)

    with pytest.raises(Stopped):
        listen(work)
    assert done == [number]


def test_further_signals_change_nothing_on_the_way_out() -> None:
    done = []

    def work(_: StopSignals) -> None:
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("cleaned up")

    with pytest.raises(Stopped) as caught:
        listen(work)
    assert done == ["cleaned up"]
    assert caught.value.number == signal.SIGUSR1


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2"}, {"SLURM_JOB_ID": "7"}])
def test_a_second_ctrl_c_stops_a_process_that_a_person_started_but_no_rank(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    done = []

    def work(signals: StopSignals) -> None:
        with signals.deferred():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("step")

    with pytest.raises(Stopped):
        listen(work)
    assert not done
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Stopped):
        listen(work)
    assert done == ["step"]


def test_ctrl_c_stops_a_process_again_if_a_finaliser_swallowed_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)

    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def work(_: StopSignals) -> None:
        Finalised()
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("goes on")

    with pytest.raises(Stopped):
        listen(work)


def test_nohup_keeps_a_job_from_ending_with_its_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    listen(lambda _: signal.raise_signal(signal.SIGHUP))
    received: list[int] = []
    script = "import os, signal; os.kill(os.getppid(), signal.SIGHUP)"
    monkeypatch.setattr(processes, "command", lambda _: (sys.executable, "-c", script))
    job = Job("train", tmp_path, typed("{}"), "{}")
    job.save()
    assert processes.run(job, received=received) == 0
    assert received == []


def test_threads_other_than_the_main_one_leave_handlers_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work(_: StopSignals) -> None:
        inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen, args=(work,))
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert neurofreeze("train", tiny_checkpoint, folder, *ARM) == 0
    return weights(folder / "arms" / "none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "code", "said", "saved"),
    [
        ([signal.SIGTERM], 143, "stopped by SIGTERM; saved at step 3; the same command goes on from here", 3),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1], 138, "stopped by SIGUSR1; saved at step 3; the same", 3),
        ([signal.SIGINT, signal.SIGINT], 130, "interrupted; the same command goes on from here", 1),
    ],
)
def test_a_process_that_was_signalled_goes_on_to_the_same_bits(
    numbers: list[signal.Signals],
    code: int,
    said: str,
    saved: int,
    whole: dict[str, bytes],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    overrides = [*settings(tiny_checkpoint, folder), *ARM, *(["training.save_steps=1"] if saved == 1 else [])]
    command = [sys.executable, str(HELD), "log", "2", "neurofreeze", "train", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not any(row.get("global_step") == 2 for row in read_rows(folder / "metrics.jsonl")):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.3)  # two of the same that are both pending are one
        (folder / GO).touch()
        assert process.wait(timeout=60) == code, log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()
    assert said in log.read_text(encoding="utf-8")
    unfinished = folder / "arms" / "none.unfinished"
    assert [path.parent.name for path in unfinished.rglob("complete.json")] == [f"checkpoint-{saved}"]

    assert neurofreeze("train", tiny_checkpoint, folder, *ARM) == 0
    assert weights(folder / "arms" / "none") == whole
