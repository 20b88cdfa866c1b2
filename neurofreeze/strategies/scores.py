"""NeuronScores: one float32 per neuron, and the rules that turn scores into choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neurofreeze.errors import NeuroFreezeError
from neurofreeze.mask import FloatArray, MaskConfig, NeuronMask, check_fraction
from neurofreeze.neurons import NeuronMap


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """How much each neuron matters by one strategy on one calibration set.

    Attributes:
        neuron_map: the model's neurons.
        values: site name -> float32 [neurons].
        strategy: the strategy's name and parameters.

    Raises:
        NeuroFreezeError: if a score is NaN or infinite, naming the site.
    """

    neuron_map: NeuronMap
    values: Mapping[str, FloatArray]
    strategy: dict[str, Any]

    def __post_init__(self) -> None:
        for name, values in self.values.items():
            if not np.isfinite(values).all():
                neuron = int(np.flatnonzero(~np.isfinite(values))[0])
                raise NeuroFreezeError(
                    f"the score of neuron {neuron} of {name} is {values[neuron]}; expected a finite number. Does the "
                    "model give finite outputs on the calibration set?"
                )

    def __add__(self, other: NeuronScores) -> NeuronScores:
        return self._combine(other, np.add)

    def __sub__(self, other: NeuronScores) -> NeuronScores:
        return self._combine(other, np.subtract)

    def _combine(self, other: NeuronScores, op: Any) -> NeuronScores:
        return NeuronScores(
            self.neuron_map, {name: op(self.values[name], other.values[name]) for name in self.values}, self.strategy
        )

    def top(self, fraction: float) -> NeuronMask:
        """The `fraction` of neurons with the highest scores, of each kind (MLP, attention) separately.

        Kinds are not comparable: a head has tens of times the weights of an MLP neuron. Equal scores are taken in
        the order of layers, then neurons.

        Raises:
            MaskError: if fraction is not in (0, 1].
        """
        check_fraction(fraction)
        bits: dict[str, Any] = {}
        for names in kinds(self.neuron_map).values():
            order = np.argsort(-self.joined(names), kind="stable")
            chosen = np.zeros(len(order), dtype=bool)
            chosen[order[: round(fraction * len(order))]] = True
            bits |= split(chosen, names, self.neuron_map)
        strategy = {**self.strategy, "rule": "top", "fraction": fraction}
        return NeuronMask(bits, MaskConfig.of(self.neuron_map, strategy=strategy), self.values)

    def joined(self, names: list[str]) -> FloatArray:
        """The scores of these sites, one after the other."""
        return np.concatenate([self.values[name] for name in names])


def kinds(neuron_map: NeuronMap) -> dict[str, list[str]]:
    """Kind of site -> the names of its sites, in order of layers."""
    found: dict[str, list[str]] = {}
    for site in neuron_map.sites.values():
        found.setdefault(site.kind, []).append(site.name)
    return found


def split(joined: npt.NDArray[Any], names: list[str], neuron_map: NeuronMap) -> dict[str, npt.NDArray[Any]]:
    """The inverse of `NeuronScores.joined`."""
    ends = np.cumsum([neuron_map.sites[name].neurons for name in names])[:-1]
    return dict(zip(names, np.split(joined, ends), strict=True))
