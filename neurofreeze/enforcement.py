"""Which enforcement costs less for a mask: masked gradients (`freeze`) or selective layers (`selective`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap

# Selective layers keep a second copy of what trains, and save the gradient and moments of what does not. Measured, they
# take as long from about a tenth frozen on and as much memory from about a third (docs/benchmarks.md).
SELECTIVE_FROM = 1 / 3

_MASK_ONLY = ("fsdp1",)  # engines under which selective layers do not run


class Enforcement(NamedTuple):
    """The enforcement to use, "mask" or "selective", and why."""

    name: str
    why: str

    @classmethod
    def cheaper(cls, neuron_map: NeuronMap, mask: NeuronMask, engine: str = "plain") -> Enforcement:
        """By the share of the neurons' weights that `mask` freezes, and the engine's name."""
        if engine in _MASK_ONLY:
            return cls("mask", f"selective layers do not run under {engine}")
        if any(len(shape) == 3 for shape in neuron_map.shapes.values()):
            return cls("mask", "selective layers form the whole gradient of a stack of experts, and save little")
        everything = {name: np.ones_like(bits) for name, bits in mask.bits.items()}
        share = neuron_map.elements(mask.bits) / neuron_map.elements(everything)
        if share < SELECTIVE_FROM:
            return cls("mask", f"{share:.0%} of the neurons' weights freeze; selective layers pay from a third on")
        return cls("selective", f"{share:.0%} of the neurons' weights freeze, and need no gradients or moments")
