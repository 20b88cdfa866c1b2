from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neurofreeze.benchmark.pool import work_off

from .fakes import fakes

SECONDS = 60


@pytest.mark.slow
def test_a_failing_and_a_killed_cell_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    done: dict[str, str | None] = {}
    work_off(
        fakes(tmp_path, "first", "wrong", "killed", "last"),
        jobs=1,
        threads=1,
        logs=tmp_path / "logs",
        done=lambda cell, error: done.update({str(cell.place): error}),
    )
    assert list(done) == ["first", "wrong", "killed", "last"]
    assert done["first"] is done["last"] is None
    assert done["wrong"] == "ValueError: no such thing"
    assert "exit code -9" in str(done["killed"])
    assert "no such thing" in (tmp_path / "logs" / "worker-0.log").read_text(encoding="utf-8")
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "from pathlib import Path\n"
        "from neurofreeze.benchmark.pool import work_off\n"
        "from tests.benchmark.fakes import fakes\n"
        "if __name__ == '__main__':\n"
        f"    work_off(fakes(Path({str(tmp_path)!r}), 'endless'), 1, 1, Path({str(tmp_path)!r}), print)\n"
    )
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py"], env=os.environ | {"PYTHONPATH": str(root)})
    try:
        worker = _when(lambda: next((int(path.suffix[1:]) for path in tmp_path.glob("endless.*")), 0))
    finally:
        parent.send_signal(number)
        parent.wait(SECONDS)
    assert _when(lambda: not _alive(worker))


def _when(found: object) -> int:
    """What a call returns once that is true."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if value := found():  # type: ignore[operator]
            return int(value)
        time.sleep(0.05)
    raise TimeoutError


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").split()[2] != "Z"
    except FileNotFoundError:
        return False
