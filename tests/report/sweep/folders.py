"""A sweep's folder as its jobs leave it, without the hours: two strategies, two fractions, one failed, one missing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from neurofreeze.config.schema import Config, StrategyConfig
from neurofreeze.stages.context import Run
from neurofreeze.tracking.result import write_result
from tests.tracking.folders import finished


def job(folder: Path, refusals: dict[str, int], code: int = 0, **settings: object) -> Run:
    """A run of a sweep with its settings and result."""
    run = finished(folder, refusals, **settings)
    settled(run)
    write_result(run, "run", code)
    return run


def settled(run: Run) -> None:
    (run.folder.path / "resolved.yaml").write_text(OmegaConf.to_yaml(asdict(run.config)), encoding="utf-8")


def sweep(folder: Path, listed: bool = True) -> Path:
    """Six jobs, which sweep.json lists if asked for."""
    start, jobs = {"start": 9, "none": 2}, []
    for number, (strategy, fraction, safety) in enumerate(
        [("wifv", 0.05, 5), ("wifv", 0.15, 8), ("random", 0.05, 3), ("random", 0.15, 4)]
    ):
        settings = {"strategy": StrategyConfig(name=strategy), "fraction": fraction}
        job(folder / str(number), {**start, "safety": safety}, **settings)
        jobs.append({"folder": str(number), "overrides": ["name=s", f"strategy={strategy}", f"fraction={fraction}"]})
    failed = Run(Config(fraction=0.4, arms=["none", "safety"]), folder / "4")
    settled(failed)
    write_result(failed, "run", 3)
    # The last one left nothing at all.
    jobs += [{"folder": number, "overrides": ["strategy=wifv", f"fraction=0.{number}"]} for number in ("4", "5")]
    if listed:
        (folder / "sweep.json").write_text(json.dumps({"command": "run", "name": "s", "jobs": jobs}), encoding="utf-8")
    return folder


def over_seeds(folder: Path) -> Path:
    """Three seeds of two fractions, and one more run that differs in something else."""
    for number, (seed, fraction, safety) in enumerate([(0, 0.1, 5), (1, 0.1, 8), (2, 0.1, 8), (0, 0.2, 9)]):
        job(folder / str(number), {"start": 9, "none": seed, "safety": safety}, seed=seed, fraction=fraction)
    return folder
