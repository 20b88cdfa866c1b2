"""Sequential detectors: statistics that grow as a stream departs from its reference, in memory that does not.

Each runs any number of streams at once, so that what calibrates its threshold is the very code that watches. `inputs`
says what it takes of standardised activations; `update` takes one prompt of each stream.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from neurofreeze.guard.monitor.reference import Reference

Array = npt.NDArray[np.float64]
_FLOOR = 1e-4  # of a bin's share, which may be empty while its logarithm must be finite


class Detector(Protocol):
    """Something that a stream is shown prompt by prompt."""

    def inputs(self, standardized: Array) -> npt.NDArray[np.generic]:
        """What it takes of each prompt, [prompts, ...], from activations in standard deviations [prompts, neurons]."""
        ...

    def update(self, inputs: npt.NDArray[np.generic]) -> Array:
        """Take one prompt of each stream, [streams, ...]; the statistic now, float64 [streams]."""
        ...

    def restart(self) -> None:
        """Begin anew, as after an alarm."""
        ...


class Cusum:
    """Two-sided cumulative sums of standardised values (Page 1954), the largest over values and sides.

    C+ <- max(0, C+ + z - k), C- <- max(0, C- - z - k); see Montgomery, Introduction to Statistical Quality Control,
    chapter 9. With k = 1/2 it is tuned to shifts of one standard deviation.

    Args:
        reference: what values are standardised by.
        allowance: k.
        joint: one value, the logarithm of the squared Mahalanobis distance in standard deviations of held-out prompts';
            False for one value a neuron.
        streams: how many run at once.
    """

    def __init__(self, reference: Reference, allowance: float, *, joint: bool, streams: int = 1) -> None:
        self._reference = reference
        self._allowance = allowance
        self._joint = joint
        self.sums = np.zeros((2, streams, 1 if joint else reference.neurons))
        logs = np.log(reference.held_distances)
        self._center, self._spread = float(logs.mean()), max(float(logs.std()), 1e-12)

    def inputs(self, standardized: Array) -> Array:
        """Float64 [prompts, values]."""
        if not self._joint:
            return standardized
        return (np.log(self._reference.distances(standardized)) - self._center)[:, None] / self._spread

    def update(self, inputs: npt.NDArray[np.generic]) -> Array:
        """Take one prompt of each stream."""
        signed = np.stack([inputs, np.negative(inputs)])
        self.sums = np.maximum(0, self.sums + signed - self._allowance)
        return self.sums.max((0, 2))

    def restart(self) -> None:
        """Back to 0."""
        self.sums[:] = 0


class Psi:
    """Population stability index of each neuron between its reference and a window, the largest over neurons.

    PSI = sum over bins of (a - e) ln(a / e), a and e being the shares of the window and of the reference (Siddiqi 2006;
    it is the symmetrised Kullback-Leibler divergence). Bins are quantiles of the reference. The window is exponential,
    with the weight of `window` prompts: counts decay by 1 - 1/window a prompt, and begin as the reference's.

    Args:
        reference: its bins and their shares.
        window: prompts.
        streams: how many run at once.
    """

    def __init__(self, reference: Reference, window: int, *, streams: int = 1) -> None:
        self._edges = (reference.edges - reference.mean[:, None]) / reference.scale[:, None]
        self._start = np.maximum(reference.shares, _FLOOR)
        self._logs = np.log(self._start)
        self._rate = 1 / window
        self.shares = np.repeat(self._start[None], streams, 0)

    def inputs(self, standardized: Array) -> npt.NDArray[np.int64]:
        """The bin of each value, int64 [prompts, neurons]."""
        found = [np.searchsorted(edges, values) for edges, values in zip(self._edges, standardized.T, strict=True)]
        return np.stack(found, 1).astype(np.int64)

    def update(self, inputs: npt.NDArray[np.generic]) -> Array:
        """Take one prompt of each stream."""
        return self.by_neuron(inputs).max(1)

    def by_neuron(self, inputs: npt.NDArray[np.generic]) -> Array:
        """As `update`, for every neuron: float64 [streams, neurons]."""
        self.shares *= 1 - self._rate
        streams, neurons = np.indices(inputs.shape)
        self.shares[streams, neurons, inputs] += self._rate
        current = np.maximum(self.shares, _FLOOR)
        return ((current - self._start) * (np.log(current) - self._logs)).sum(-1)

    def restart(self) -> None:
        """Back to the reference's shares."""
        self.shares[:] = self._start
