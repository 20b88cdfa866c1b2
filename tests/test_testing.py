"""The helper that runs a test on several ranks must not let a failure pass."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from neurofreeze.testing import process_context, run_distributed_test


def write_sum_of_ranks(folder: str, forked: bool) -> None:
    assert ("tests.preloaded" in sys.modules) == forked
    assert os.environ["SET_BY_THE_TEST"] == "yes"
    assert "HOME" not in os.environ
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    assert os.environ["RANK"] == str(dist.get_rank())
    assert os.environ["WORLD_SIZE"] == str(dist.get_world_size())
    Path(folder, str(dist.get_rank())).write_text(str(total.item()))


def fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("this rank is broken")


def leave_on_rank_one() -> None:
    if dist.get_rank() == 1:
        os._exit(7)


def crash_on_rank_one() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def hang_on_rank_one() -> None:
    if dist.get_rank() == 1:
        time.sleep(600)


def fail_at_length() -> None:
    raise ValueError("x" * 300_000)


@pytest.mark.parametrize("method", [None, "forkserver"])
def test_every_rank_runs_in_one_group(method: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda allow_none: method)
    monkeypatch.setenv("SET_BY_THE_TEST", "yes")
    monkeypatch.delenv("HOME")
    run_distributed_test(write_sum_of_ranks, world_size=2, args=(str(tmp_path), method == "forkserver"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "3.0", "1": "3.0"}


def test_ranks_are_never_copies_of_the_tests_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda allow_none: "fork")
    assert process_context().get_start_method() == "spawn"


def test_a_failing_rank_fails_the_test_with_its_traceback() -> None:
    with pytest.raises(
        AssertionError, match=r"(?s)^rank 1: raised.*in fail_on_rank_one.*this rank is broken"
    ) as caught:
        run_distributed_test(fail_on_rank_one, world_size=2)
    assert "rank 0" not in str(caught.value)


def test_a_very_long_message_is_cut_at_its_beginning() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 0: raised.*xxx.*rank 1: raised.*xxx") as caught:
        run_distributed_test(fail_at_length, world_size=2)
    assert len(str(caught.value)) < 15_000


@pytest.mark.parametrize(
    ("end", "message"),
    [(leave_on_rank_one, "left with exit code 7 before it reported"), (crash_on_rank_one, "died of SIGKILL")],
)
def test_a_dying_rank_fails_the_test_and_says_of_what(end: Callable[[], None], message: str) -> None:
    with pytest.raises(AssertionError, match=f"rank 1: {message}"):
        run_distributed_test(end, world_size=2)


@pytest.mark.slow
def test_a_hanging_rank_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="rank 1: still running after 3 s"):
        run_distributed_test(hang_on_rank_one, world_size=2, timeout=3)
