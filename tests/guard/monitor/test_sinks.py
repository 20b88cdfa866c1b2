"""Rows and metrics hold the verdicts, and nothing of the prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofreeze.config.monitor import DetectionConfig
from neurofreeze.errors import ConfigError
from neurofreeze.guard.monitor import Metrics, Monitor, RowFile
from tests.guard.monitor.streams import Stream, reference

CONFIG = DetectionConfig(false_alarm_rate=0.05, run_length=50, window=50)


@pytest.fixture(scope="module")
def made() -> Monitor:
    return Monitor(reference(200), CONFIG)


@pytest.fixture
def monitor(made: Monitor) -> Monitor:
    made.restart()
    made.sinks.clear()
    return made


def stream() -> np.ndarray:
    found = np.concatenate([Stream(3).draw(5), Stream(4).draw(5, 4.0)])
    found[-1] = np.nan
    return found


def test_rows(monitor: Monitor, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "monitor.jsonl"
    with RowFile(path) as rows:
        monitor.sinks.append(rows)
        verdicts = monitor.see(stream())
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prompt"] for row in found] == list(range(1, 11))
    assert [row["alarms"] for row in found] == [list(verdict.alarms) for verdict in verdicts]
    assert found[5]["distance"] == pytest.approx(verdicts[5].distance, abs=1e-3)
    assert found[-1]["distance"] is None
    assert found[0].keys() == {
        *("time", "prompt", "distance", "p_value", "cusum", "cusum_neurons", "psi", "farthest", "deviation", "alarms")
    }


def test_metrics(monitor: Monitor) -> None:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    registry = CollectorRegistry()
    Metrics(monitor, registry)
    assert registry.get_sample_value("neurofreeze_monitor_alarms_total", {"alarm": "psi"}) == 0
    verdicts = monitor.see(stream())
    value = registry.get_sample_value
    assert value("neurofreeze_monitor_prompts_total") == 10
    for alarm in ("mahalanobis", "cusum", "cusum_neurons", "psi", "not_finite"):
        assert value("neurofreeze_monitor_alarms_total", {"alarm": alarm}) == monitor.counts[alarm]
    assert value("neurofreeze_monitor_alarms_total", {"alarm": "mahalanobis"}) >= 4
    ratios = [verdict.distance / monitor.thresholds["mahalanobis"] for verdict in verdicts[:-1]]
    assert value("neurofreeze_monitor_distance_ratio_sum") == pytest.approx(sum(ratios))
    at_most = value("neurofreeze_monitor_distance_ratio_bucket", {"le": "1.0"})
    assert at_most == sum(ratio <= 1 for ratio in ratios)
    last = verdicts[-2].statistics["psi"]
    assert value("neurofreeze_monitor_statistic_ratio", {"detector": "psi"}) == pytest.approx(last)
    text = generate_latest(registry).decode()
    names = {f.name for f in text_string_to_metric_families(text) if not f.name.endswith("_created")}
    assert names == {f"neurofreeze_monitor_{n}" for n in ("prompts", "alarms", "distance_ratio", "statistic_ratio")}


def test_without_the_library_what_to_install_is_said(monitor: Monitor, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"neurofreeze\[serve\]"):
        Metrics(monitor)
