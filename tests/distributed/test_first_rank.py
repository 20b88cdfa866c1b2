"""What rank 0 does for all: once, as if it were alone, with its result or its error on every rank."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from neurofreeze.distributed import first_rank, gather, rank, world_size
from neurofreeze.errors import OtherRankError, RunError
from neurofreeze.stages.folder import RunFolder
from neurofreeze.testing import run_distributed_test

pytestmark = pytest.mark.slow


def one_result_for_all() -> None:
    mine = dist.get_rank()
    assert first_rank(lambda: ("done by", mine, world_size(), gather(mine), rank())) == ("done by", 0, 1, [0], 0)
    assert (world_size(), gather(mine)) == (2, [0, 1])


def one_error_for_all() -> None:
    def fail() -> None:
        raise RunError("no space")

    with pytest.raises(RunError if rank() == 0 else OtherRankError, match="no space"):
        first_rank(fail)
    assert gather(rank()) == [0, 1], "the ranks go on together"


def stages_of_a_run(path: str) -> None:
    folder, done = RunFolder(Path(path)), []

    def work() -> dict[str, Any]:
        done.append(rank())
        return {"by": rank()}

    assert folder.run("select", {"seed": 0}, work) == {"by": 0}
    assert done == ([0] if rank() == 0 else [])
    assert folder.run("train", {"seed": 0}, work, together=True) == {"by": 0}
    assert done[-1:] == [rank()]
    (Path(path) / "stages" / "train.json").unlink(missing_ok=True)  # as on a node that does not see it yet
    assert gather(folder.result("train")) == [None, {"by": 0}]
    with pytest.raises(RunError if rank() == 0 else OtherRankError, match="seed was 0, is 1"):
        RunFolder(Path(path)).run("select", {"seed": 1}, work)


def all_of_it(path: str) -> None:
    one_result_for_all()
    one_error_for_all()
    stages_of_a_run(path)


def test_rank_0_works_for_all() -> None:
    with tempfile.TemporaryDirectory() as path:
        run_distributed_test(all_of_it, args=(path,), timeout=120)


def test_one_process_does_it_itself() -> None:
    assert first_rank(lambda: 5) == 5
