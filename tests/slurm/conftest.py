from __future__ import annotations

from collections.abc import Iterator

import pytest

from .cluster import SlurmCluster, missing, slurm_cluster


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[SlurmCluster]:
    """One cluster for all tests of this process."""
    if reason := missing():
        pytest.skip(reason)
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_session: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, found by sbatch, squeue ... of this process too; no job outlives the test."""
    monkeypatch.setenv("SLURM_CONF", slurm_session.environment["SLURM_CONF"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the console script does
    yield slurm_session
    slurm_session.clear()
