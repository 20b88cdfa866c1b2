"""Drift: how far a model in training has taken the safety neurons from their reference, on the same few prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neurofreeze.data.examples import Example
from neurofreeze.guard.monitor.calibrating import observations
from neurofreeze.guard.monitor.reference import Reference
from neurofreeze.guard.monitor.thresholds import conformal
from neurofreeze.training.probes import undisturbed


class Drift:
    """A few benign prompts beside a reference; give it to a `MonitorCallback`.

    Args:
        reference: of the model before training, loaded with `other_weights=True` where that goes on from a checkpoint.
        examples: benign prompts, none of those that the reference was made of.
        tokenizer: of the model.
        batch_size: prompts a batch.
        false_alarm_rate: of the prompts that count as past the threshold before training.

    Raises:
        DataError: if the reference has too few held-out prompts for that rate, or is of another chat template.
    """

    def __init__(
        self,
        reference: Reference,
        examples: Sequence[Example],
        tokenizer: Any,
        *,
        batch_size: int = 16,
        false_alarm_rate: float = 0.05,
    ) -> None:
        reference.require_template(tokenizer)
        self.reference = reference
        self.examples = examples
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.threshold = conformal(reference.held_distances, false_alarm_rate)

    def measure(self, model: Any) -> dict[str, Any]:
        """What became of the watched neurons; training goes on as if nothing had happened. Collective under sharding.

        Returns:
            "drift_alarms", prompts past the threshold as [count, total]; "drift_distance", the mean squared Mahalanobis
            distance over that of the held-out prompts; "drift_shift", the root mean square over neurons of their means'
            shift, and "drift_largest", the largest, in standard deviations; and "drift_neuron", whose that is.
        """
        with undisturbed(model):
            mask, pooling = self.reference.mask, self.reference.pooling
            found = list(observations(model, self.tokenizer, self.examples, mask, pooling, self.batch_size))
        standardized = self.reference.standardized(np.concatenate(found))
        distances = self.reference.distances(standardized)
        shifts = standardized.mean(0)
        largest = int(np.argmax(np.abs(shifts)))
        return {
            "drift_alarms": [int((distances > self.threshold).sum()), len(distances)],
            "drift_distance": float(distances.mean() / self.reference.held_distances.mean()),
            "drift_shift": float(np.sqrt(np.square(shifts).mean())),
            "drift_largest": float(shifts[largest]),
            "drift_neuron": self.reference.names[largest],
        }
