from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .runs import neurofreeze


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A run folder that `neurofreeze run` completed; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert neurofreeze("run", tiny_checkpoint, folder) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` to spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
