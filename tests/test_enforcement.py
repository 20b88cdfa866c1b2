"""Which enforcement is chosen, and why."""

from __future__ import annotations

import pytest

from neurofreeze import NeuronMap, NeuronMask
from neurofreeze.enforcement import Enforcement
from tests import tiny


@pytest.mark.parametrize(("fraction", "name"), [(0.15, "mask"), (0.72, "selective"), (1.0, "selective")])
def test_the_share_of_frozen_weights_decides(fraction: float, name: str) -> None:
    neuron_map = NeuronMap.of(tiny.config())
    found = Enforcement.cheaper(neuron_map, NeuronMask.random(neuron_map, fraction, 0))
    assert found.name == name
    assert "of the neurons' weights freeze" in found.why


def test_weights_count_not_neurons() -> None:
    # Few, but all heads: they own more than a third of the weights.
    neuron_map = NeuronMap.of(tiny.config("qwen3"))
    none = NeuronMask.none(neuron_map)
    heads = NeuronMask({name: bits | ("attention" in name) for name, bits in none.bits.items()}, none.config)
    assert heads.fraction < 0.1  # of the neurons
    assert Enforcement.cheaper(neuron_map, heads).name == "selective"


@pytest.mark.parametrize(("architecture", "engine"), [("mixtral", "plain"), ("llama", "fsdp1")])
def test_where_selective_layers_save_nothing_or_do_not_run(architecture: str, engine: str) -> None:
    neuron_map = NeuronMap.of(tiny.config(architecture))
    mask = NeuronMask.random(neuron_map, 0.9, 0)
    assert Enforcement.cheaper(neuron_map, mask, engine).name == "mask"
