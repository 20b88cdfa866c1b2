"""A sweep of whole runs on the cluster: one array, a run folder each, and one table of what they came to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neurofreeze.cli import main
from tests.stages.runs import settings

from .cluster import SlurmCluster


@pytest.mark.slow
def test_a_sweep_of_runs_is_one_array_and_one_table(
    slurm: SlurmCluster, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    overrides = [override for override in settings(tiny_checkpoint, folder) if not override.startswith("hydra.")]
    where = [f"hydra.sweep.dir={folder}", "cluster=slurm", "cluster.cpus_per_rank=1", "cluster.poll_seconds=0.5"]
    sweep = ["strategy=wifv,random", "fraction=0.05,0.15", "arms=[safety]", "method=top"]
    code = main(["run", "--multirun", *sweep, *where, *overrides, "cluster.wait=true"])
    logs = [path.read_text(encoding="utf-8")[-2000:] for path in folder.glob("*/logs/*")]
    assert code == 0, logs
    jobs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["jobs"]
    assert [job["folder"] for job in jobs] == ["0", "1", "2", "3"]
    assert [path.name for path in folder.glob("*.sbatch")] == ["job.sbatch"]
    assert len(logs) == 4
    frozen = set()
    for job in jobs:
        verification = json.loads((folder / job["folder"] / "verification.json").read_text(encoding="utf-8"))
        assert verification["ok"]
        frozen.add(verification["frozen"])
        assert (folder / job["folder"] / "report.html").is_file()
    assert len(frozen) > 1, "both fractions must have been used"

    capsys.readouterr()
    assert main(["status", str(folder)]) == 0
    assert capsys.readouterr().out.count("complete") == 4
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("wifv", "random", "0.05", "0.15"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("wifv", "random", "0.05", "0.15"))
