"""The comparison of a sweep's runs as one HTML file that needs nothing else."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from neurofreeze._version import __version__
from neurofreeze.files import write_atomically
from neurofreeze.report.figures.trade_off import trade_off
from neurofreeze.report.html import Picture
from neurofreeze.report.sweep.content import Sweep
from neurofreeze.report.templates import render

FILE = "report.html"


def write_sweep(sweep: Sweep) -> Path:
    """Write report.html into the sweep's folder, whole or not at all, and return its path."""
    path = sweep.folder / FILE
    points = sweep.points
    told = "; ".join(
        f"run {run.name}, {arm.name}: {arm.refusals.count} of {arm.refusals.total} at loss {arm.domain_loss:.2f}"
        for run, arm in points
        if arm.refusals
    )
    page = render(
        "sweep.html",
        sweep=sweep,
        title=f"NeuroFreeze sweep: {sweep.folder.resolve().name}",
        figure=Picture(trade_off(sweep), f"Refusals against domain loss. {told}.") if points else None,
        complete=sum(run.complete for run in sweep.runs),
        changed=any(arm.changed for run in sweep.runs for arm in run.arms),
        seed_settings=list(dict.fromkeys(key for found in sweep.seeds for key in found.settings)),
        version=__version__,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_atomically(path, page.encode())
    return path
