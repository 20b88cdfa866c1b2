"""Monitoring of the safety neurons: a reference on benign prompts, and alarms when a stream departs from it."""

from __future__ import annotations

from neurofreeze.guard.monitor.calibrating import calibrate
from neurofreeze.guard.monitor.monitor import Monitor, Verdict
from neurofreeze.guard.monitor.reference import Reference
from neurofreeze.guard.monitor.sinks import Metrics, RowFile

__all__ = ["Metrics", "Monitor", "Reference", "RowFile", "Verdict", "calibrate"]
