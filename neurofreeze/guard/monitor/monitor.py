"""Monitor: compares what the safety neurons do, prompt by prompt, with their reference, and raises alarms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from neurofreeze.config.monitor import DetectionConfig
from neurofreeze.errors import NeuroFreezeError
from neurofreeze.evaluation.statistics import Rate
from neurofreeze.guard.monitor.detectors import Array, Cusum, Detector, Psi
from neurofreeze.guard.monitor.reference import Reference
from neurofreeze.guard.monitor.thresholds import conformal, p_value, run_length
from neurofreeze.guard.monitor.watching import watching

ALARMS = ("mahalanobis", "cusum", "cusum_neurons", "psi", "not_finite")


@dataclass(frozen=True)
class Verdict:
    """What the monitor found in one prompt. It holds nothing of the prompt itself.

    Attributes:
        number: of the prompt in the stream, from 1.
        distance: squared Mahalanobis distance; infinite if an activation is not finite.
        p_value: share of held-out prompts at least as far, this one among them.
        statistics: of the sequential detectors "cusum", "cusum_neurons" and "psi", each over its threshold: 1 is an
            alarm. Empty if an activation is not finite.
        farthest: the neuron that is farthest from its mean, "layers.3.mlp/17".
        deviation: how far, in standard deviations.
        alarms: those of ALARMS that were raised; the prompt's own, "mahalanobis" and "not_finite", say that this prompt
            is unlike the reference, the others that the stream has been for a while.
    """

    number: int
    distance: float
    p_value: float
    statistics: dict[str, float]
    farthest: str
    deviation: float
    alarms: tuple[str, ...]

    @property
    def row(self) -> dict[str, Any]:
        """As a row of JSON."""
        finite = np.isfinite(self.distance)
        return {
            "prompt": self.number,
            "distance": round(self.distance, 3) if finite else None,
            "p_value": round(self.p_value, 5),
            **{name: round(value, 4) for name, value in self.statistics.items()},
            "farthest": self.farthest,
            "deviation": round(self.deviation, 3) if finite else None,
            "alarms": list(self.alarms),
        }


Sink = Callable[[Verdict], None]


class Monitor:
    """Watches a stream of prompts in memory that does not grow with it.

    A sequential detector that raises an alarm begins anew, so that it raises the next one only if the shift goes on.

    Args:
        reference: of the model's safety neurons.
        config: how many false alarms are allowed.
        sinks: called with each verdict: `RowFile`, `Metrics`, or a function of one's own.

    Attributes:
        thresholds: by alarm; of "mahalanobis" the squared distance.
        counts: alarms raised so far, by kind.
        prompts: seen so far.

    Raises:
        DataError: if the reference has too few held-out prompts for the false-alarm rate, or a detector stays at 0.
    """

    def __init__(self, reference: Reference, config: DetectionConfig | None = None, sinks: Sequence[Sink] = ()) -> None:
        self.reference = reference
        self.config = config or DetectionConfig()
        self.sinks = list(sinks)
        makers: dict[str, Callable[..., Detector]] = {
            "cusum": partial(Cusum, reference, self.config.allowance, joint=True),
            "cusum_neurons": partial(Cusum, reference, self.config.allowance, joint=False),
            "psi": partial(Psi, reference, self.config.window),
        }
        self.detectors = {name: make() for name, make in makers.items()}
        held, length = reference.held, self.config.run_length
        self.thresholds = {"mahalanobis": conformal(reference.held_distances, self.config.false_alarm_rate)}
        for name, make in makers.items():
            several = partial(_streams, make)
            self.thresholds[name] = run_length(several, held, length, self.config.seed)
        self._attached: ExitStack | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the stream so far."""
        self.prompts = 0
        self.counts: Counter[str] = Counter()
        for detector in self.detectors.values():
            detector.restart()

    def see(self, observations: Array) -> list[Verdict]:
        """Take the activations of one or more prompts in the order of the stream, float64 [prompts, neurons]."""
        standardized = self.reference.standardized(observations)
        return [self._one(row[None]) for row in standardized]

    @contextmanager
    def watching(self, model: Any) -> Iterator[Monitor]:
        """Within the block, see every prompt that the model reads; what it computes stays the same.

        Raises:
            MaskError: if the reference is for another model.
            ArchitectureError: if its experts cannot be watched.
        """
        with watching(model, self.reference.mask, self.reference.pooling, self.see):
            yield self

    def attach(self, model: Any) -> None:
        """As `watching`, until `detach`.

        Raises:
            NeuroFreezeError: if it is attached already.
        """
        if self._attached is not None:
            raise NeuroFreezeError("the monitor is attached to a model already; call detach() first")
        with ExitStack() as stack:
            stack.enter_context(self.watching(model))
            self._attached = stack.pop_all()

    def detach(self) -> None:
        """Leave the model as it was; nothing happens if it is not attached."""
        if self._attached is not None:
            self._attached.close()
            self._attached = None

    @property
    def calibrated(self) -> Rate:
        """Held-out prompts past the Mahalanobis threshold: how well the false-alarm rate is known."""
        return Rate.of((self.reference.held_distances > self.thresholds["mahalanobis"]).tolist())

    @property
    def alarm_rate(self) -> Rate:
        """Prompts so far that raised the Mahalanobis alarm; of the reference's own kind about the nominal share are."""
        return Rate.of([True] * self.counts["mahalanobis"] + [False] * (self.prompts - self.counts["mahalanobis"]))

    def _one(self, standardized: Array) -> Verdict:
        self.prompts += 1
        farthest = int(np.argmax(np.nan_to_num(np.abs(standardized[0]), nan=np.inf)))
        statistics: dict[str, float] = {}
        if np.isfinite(standardized).all():
            distance = float(self.reference.distances(standardized)[0])
            alarms = ["mahalanobis"] if distance > self.thresholds["mahalanobis"] else []
            for name, detector in self.detectors.items():
                found = float(detector.update(detector.inputs(standardized))[0])
                statistics[name] = found / self.thresholds[name]
                if found > self.thresholds[name]:
                    alarms.append(name)
                    detector.restart()
        else:
            distance, alarms = float("inf"), ["not_finite"]  # and kept from sums that it would spoil for good
        verdict = Verdict(
            self.prompts,
            distance,
            p_value(self.reference.held_distances, distance),
            statistics,
            self.reference.names[farthest],
            float(standardized[0, farthest]),
            tuple(alarms),
        )
        self.counts.update(alarms)
        for sink in self.sinks:
            sink(verdict)
        return verdict


def _streams(make: Callable[..., Detector], streams: int) -> Detector:
    return make(streams=streams)
