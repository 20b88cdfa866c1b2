"""What counts as an alarm, and the settings of `neurofreeze monitor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from omegaconf import MISSING

from neurofreeze.config.checks import check
from neurofreeze.config.tracker import TrackerConfig


@dataclass
class DetectionConfig:
    """Thresholds by the rate of false alarms that they allow."""

    false_alarm_rate: float = 0.01  # of the Mahalanobis alarm, a prompt
    run_length: int = 1000  # prompts to a false alarm, on average, of each sequential detector
    window: int = 200  # prompts that the population stability index looks back
    allowance: float = 0.5  # of the cumulative sums, standard deviations; tuned to shifts of twice this
    seed: int = 0  # of the bootstrap behind the sequential detectors' thresholds

    def __post_init__(self) -> None:
        rate = self.false_alarm_rate
        check(0 < rate < 1, "detection.false_alarm_rate", rate, "a number in (0, 1)")
        check(self.run_length > 1, "detection.run_length", self.run_length, "a number of prompts above 1")
        check(self.window > 1, "detection.window", self.window, "a number of prompts above 1")
        check(self.allowance >= 0, "detection.allowance", self.allowance, "a number not below 0")
        check(self.seed >= 0, "detection.seed", self.seed, "a number not below 0")


@dataclass
class MonitorCommandConfig:
    """`neurofreeze monitor`: a stream of prompts beside a reference, which is made if there is none."""

    model: str = MISSING
    revision: Optional[str] = None
    reference: str = MISSING  # its folder
    prompts: str = MISSING  # the stream: a file, a hub id, or bundled data
    calibrate: Optional[str] = None  # benign prompts, to make the reference of
    mask: Optional[str] = None  # the safety neurons, to make the reference of
    neurons: int = 64  # how many of them to watch, by score
    pooling: str = "mean"  # of activations over a prompt's tokens: mean, or last
    batch_size: int = 16
    seed: int = 0  # of the halves of the calibration prompts
    other_weights: bool = False  # watch a model whose weights are not the reference's, to see its drift
    output: str = "monitor.jsonl"  # a row a prompt is added
    name: str = "monitor"  # of the run, in a tracker
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)

    def __post_init__(self) -> None:
        check(self.neurons > 0, "neurons", self.neurons, "a positive number")
        check(self.pooling in ("mean", "last"), "pooling", self.pooling, "mean or last")
        check(self.batch_size > 0, "batch_size", self.batch_size, "a positive number")
        check(self.seed >= 0, "seed", self.seed, "a number not below 0")
