"""NeuronScores: one float32 per neuron, and the rules that turn scores into choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from neurofreeze.errors import NeuroFreezeError
from neurofreeze.mask import FloatArray, MaskConfig, NeuronMask, check_fraction
from neurofreeze.neurons import NeuronMap

_TINY = np.finfo(np.float64).tiny
Per = Literal["kind", "layer", "site", "model"]


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """How much each neuron matters by one strategy on one calibration set, or by the contrast of two.

    Attributes:
        neuron_map: the model's neurons.
        values: site name -> float32 [neurons]; a site that the strategy does not score is left out, and none of its
            neurons is ever chosen.
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

    def standardized(self) -> NeuronScores:
        """Each site's scores as z-scores: its mean subtracted, divided by its standard deviation."""
        values = {}
        for name, found in self.values.items():
            wide = found.astype(np.float64)
            values[name] = ((wide - wide.mean()) / max(float(wide.std()), _TINY)).astype(np.float32)
        return NeuronScores(self.neuron_map, values, {**self.strategy, "standardized": True})

    def top(self, fraction: float, per: Per = "kind") -> NeuronMask:
        """The `fraction` of scored neurons with the highest scores.

        Equal scores are taken in the order of layers, then neurons.

        Args:
            fraction: of each group.
            per: what is ranked together: each kind (MLP, attention), which are not comparable since a head has tens of
                times the weights of an MLP neuron; each layer's and each site's neurons; or the whole model.

        Raises:
            MaskError: if fraction is not in (0, 1].
        """
        check_fraction(fraction)
        bits: dict[str, Any] = {}
        for names in self._groups(per):
            order = np.argsort(-self.joined(names), kind="stable")
            chosen = np.zeros(len(order), dtype=bool)
            chosen[order[: round(fraction * len(order))]] = True
            bits |= split(chosen, names, self.neuron_map)
        return self._mask(bits, {"rule": "top", "fraction": fraction, "per": per})

    def above(self, threshold: float) -> NeuronMask:
        """The scored neurons whose score is greater than `threshold`."""
        bits = {name: values > threshold for name, values in self.values.items()}
        return self._mask(bits, {"rule": "above", "threshold": threshold})

    def joined(self, names: list[str]) -> FloatArray:
        """The scores of these sites, one after the other."""
        return np.concatenate([self.values[name] for name in names])

    def _groups(self, per: Per) -> list[list[str]]:
        sites = [site for name, site in self.neuron_map.sites.items() if name in self.values]
        keys = {"kind": lambda s: s.kind, "layer": lambda s: s.layer, "site": lambda s: s.name, "model": lambda s: None}
        groups: dict[Any, list[str]] = {}
        for site in sites:
            groups.setdefault(keys[per](site), []).append(site.name)
        return list(groups.values())

    def _mask(self, bits: Mapping[str, Any], rule: dict[str, Any]) -> NeuronMask:
        every = {name: np.zeros(site.neurons, dtype=bool) for name, site in self.neuron_map.sites.items()}
        scores = self.values if self.values.keys() == every.keys() else None
        config = MaskConfig.of(self.neuron_map, strategy={**self.strategy, **rule})
        return NeuronMask({**every, **bits}, config, scores)


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
