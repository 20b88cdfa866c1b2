"""Where verdicts go: a file of JSON lines, and the metrics that Prometheus reads."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from neurofreeze.errors import ConfigError
from neurofreeze.guard.monitor.monitor import ALARMS, Monitor, Verdict

_RATIOS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)


class RowFile:
    """Adds a row a prompt to a file of JSON lines; a context manager, which closes it."""

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = Path(path).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def __call__(self, verdict: Verdict) -> None:
        """Write a row."""
        self._file.write(json.dumps({"time": round(time.time(), 3), **verdict.row}) + "\n")

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Metrics:
    """Prometheus metrics of a monitor; none of them holds anything of a prompt.

    neurofreeze_monitor_prompts_total, neurofreeze_monitor_alarms_total{alarm}, the histogram
    neurofreeze_monitor_distance_ratio (squared Mahalanobis distance over its threshold) and the gauge
    neurofreeze_monitor_statistic_ratio{detector} (each sequential statistic over its threshold).

    Args:
        monitor: becomes one of its sinks.
        registry: a prometheus_client registry, None for the default one.

    Raises:
        ConfigError: if prometheus_client is not installed.
    """

    def __init__(self, monitor: Monitor, registry: Any = None) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise ConfigError("metrics need prometheus_client: pip install 'neurofreeze[serve]'") from error
        registry = registry or prometheus.REGISTRY
        name = "neurofreeze_monitor"
        self._threshold = monitor.thresholds["mahalanobis"]
        self._prompts = prometheus.Counter(f"{name}_prompts", "Prompts seen.", registry=registry)
        self._alarms = prometheus.Counter(f"{name}_alarms", "Alarms raised.", ["alarm"], registry=registry)
        self._distance = prometheus.Histogram(
            f"{name}_distance_ratio",
            "Squared Mahalanobis distance of a prompt over its threshold.",
            buckets=_RATIOS,
            registry=registry,
        )
        self._statistic = prometheus.Gauge(
            f"{name}_statistic_ratio", "Sequential statistic over its threshold.", ["detector"], registry=registry
        )
        # A series exists from the start, or a first alarm is no increase that a rule could see.
        for alarm in ALARMS:
            self._alarms.labels(alarm)
        for detector in monitor.detectors:
            self._statistic.labels(detector).set(0)
        monitor.sinks.append(self)

    def __call__(self, verdict: Verdict) -> None:
        """Count a prompt."""
        self._prompts.inc()
        if "not_finite" not in verdict.alarms:  # an infinite one would be in the sum for good
            self._distance.observe(verdict.distance / self._threshold)
        for alarm in verdict.alarms:
            self._alarms.labels(alarm).inc()
        for detector, value in verdict.statistics.items():
            self._statistic.labels(detector).set(value)
