"""Synthetic activations: correlated, skewed neurons of a tiny model, and a reference made of them."""

from __future__ import annotations

import numpy as np

from neurofreeze.guard.monitor.detectors import Array
from neurofreeze.guard.monitor.reference import Reference
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from tests import tiny

NEURONS = 12


def mask(neurons: int = NEURONS) -> NeuronMask:
    """Neurons of the tiny model's first MLP, and a head."""
    neuron_map = NeuronMap.of(tiny.config())
    none = NeuronMask.none(neuron_map)
    bits = {name: np.array(own) for name, own in none.bits.items()}
    bits["layers.0.attention"][2] = True
    bits["layers.1.mlp"][3 : 3 + neurons - 1] = True
    return NeuronMask(bits, none.config)


class Stream:
    """Draws prompts' activations: correlated normal ones, every third of them exponentiated."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.mixing = np.random.default_rng(99).normal(size=(NEURONS, NEURONS)) / 4 + np.eye(NEURONS)

    def draw(self, prompts: int, shift: Array | float = 0.0) -> Array:
        """Float64 [prompts, neurons]; `shift` is added in units of each neuron's standard deviation."""
        found = self.generator.normal(size=(prompts, NEURONS)) @ self.mixing
        found[:, ::3] = np.exp(found[:, ::3] / 2)
        return found + shift * self.scale

    @property
    def scale(self) -> Array:
        found = np.random.default_rng(98).normal(size=(20_000, NEURONS)) @ self.mixing
        found[:, ::3] = np.exp(found[:, ::3] / 2)
        return found.std(0)


def reference(prompts: int = 800, seed: int = 0) -> Reference:
    return Reference.fit(Stream(seed).draw(prompts), mask())
