"""A suite from beginning to end: the start, the choices, the cells."""

from __future__ import annotations

import fcntl
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofreeze.benchmark.cell import Cell, measured_settings
from neurofreeze.benchmark.data import SuiteData
from neurofreeze.benchmark.plan import Plan
from neurofreeze.benchmark.pool import work_off
from neurofreeze.benchmark.selecting import chosen
from neurofreeze.console import say, stage
from neurofreeze.errors import RunError
from neurofreeze.evaluation.statistics import Rate
from neurofreeze.stages import align
from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import settings_digest
from neurofreeze.training.stopping import StopSignals


@dataclass(frozen=True)
class Outcome:
    """What a suite came to.

    Attributes:
        starts: fine-tuning set -> what was measured of the start, as at a trajectory's point and end.
        results: cells that are complete, with their results.
        failed: other cells, by name, and why.
    """

    starts: dict[str, dict[str, Any]]
    results: list[tuple[Cell, dict[str, Any]]]
    failed: dict[str, str]


def run(plan: Plan, folder: Path, signals: StopSignals) -> Outcome:
    """Do what of the suite is not done yet. An interrupted suite goes on with the cells that are not complete.

    Raises:
        RunError: if another process works on the folder, or it holds cells with other settings.
    """
    with alone(folder):
        base = next(iter(plan.bases.values()))
        data = {
            (name, arm): SuiteData.read(config, plan.suite, plan.suite.sets[name], folder)
            for (name, arm), config in plan.configs.items()
        }
        start = Run(base, folder, signals=signals)
        align.run(start)
        origin = settings_digest(start.align_settings())
        starts = {name: _start(plan, name, start, data[name, plan.suite.only[0]], origin) for name in plan.bases}
        cells = _cells(plan, data, start, origin)
        failed = _run_cells([cell for cell in cells if cell.result() is None], plan, folder)
        return Outcome(starts, [(cell, found) for cell in cells if (found := cell.result()) is not None], failed)


def _start(plan: Plan, name: str, run: Run, data: SuiteData, origin: str) -> dict[str, Any]:
    config = plan.bases[name]
    settings = {"start": origin, **measured_settings(config, plan.suite, data)}

    def measure() -> dict[str, Any]:
        from neurofreeze.benchmark.measuring import Measuring

        with stage(f"measure the start on {name}"):
            measuring = Measuring(run.start, data, config, plan.suite.prompts)
            return {"point": {"step": 0, **measuring.point()}, "end": measuring.end()}

    found = run.folder.run(f"start-{name}", settings, measure)
    say(f"start: refuses {Rate.of(found['point']['refused'])} harmful; loss {found['point']['loss']:.3f} on {name}")
    return found


def _cells(plan: Plan, data: dict[tuple[str, str], SuiteData], start: Run, origin: str) -> list[Cell]:
    """All cells in the order of the plan. Choices are made here, by the calibration sets alone."""
    masks = {
        (name, arm): chosen(config, plan.suite.arms[arm], data[name, arm].sets, start.folder.path)
        for (name, arm), config in plan.configs.items()
    }
    return [
        Cell(
            place,
            plan.suite,
            plan.config(place),
            data[place.data, place.arm],
            start.start,
            origin,
            masks[place.data, place.arm],
            start.folder.path / "cells" / place.data / f"seed-{place.seed}" / place.arm,
        )
        for place in plan.places()
    ]


def _run_cells(cells: list[Cell], plan: Plan, folder: Path) -> dict[str, str]:
    failed: dict[str, str] = {}
    if not cells:
        return failed
    _release()
    with stage("cells", len(cells)) as bar:

        def done(cell: Cell, error: str | None) -> None:
            bar.advance()
            if error is not None:
                failed[str(cell.place)] = error
            say(f"{cell.place}: {_told(cell) if error is None else f'failed: {error}'}")

        work_off(cells, plan.suite.jobs, plan.suite.threads, folder / "logs", done)
    return failed


def _release() -> None:
    """Give back what the start and the choices took, which cycles still hold: the workers need the memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _told(cell: Cell) -> str:
    found = cell.result()
    assert found is not None
    last = found["points"][-1]
    return f"refuses {Rate.of(last['refused'])}, loss {last['loss']:.3f}, trained {found['training']['seconds']:.0f} s"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from working on the same suite."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"another benchmark works on {folder}; wait for it, or give this one a folder with name=..."
            ) from error
        yield
