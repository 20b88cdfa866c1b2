"""Shares of the update by site, against sums over two checkpoints neuron by neuron."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from neurofreeze import freeze
from neurofreeze.mask import MaskConfig, NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.training.updates import UpdateShares
from tests import reference, tiny

Weights = dict[str, torch.Tensor]


def saved(kind: str, folder: Path) -> Any:
    """A model in float32, saved as the base."""
    model = tiny.model(kind, dtype=torch.float32)
    model.save_pretrained(folder)
    return model


def one_site(neuron_map: NeuronMap, chosen: str) -> NeuronMask:
    """All neurons of one site."""
    bits = {name: np.full(site.neurons, name == chosen) for name, site in neuron_map.sites.items()}
    return NeuronMask(bits, MaskConfig.of(neuron_map))


def expected(model: Any, before: Weights, after: Weights) -> tuple[float, dict[str, float]]:
    """Norm of the update and each site's share, every element counted where it lies."""
    squares = {name: (after[name].double() - before[name].double()).square() for name in before}
    total = sum(float(found.sum()) for found in squares.values())
    sums = {}
    for site in NeuronMap.of(model).sites:
        members = reference.dense(model, one_site(NeuronMap.of(model), site))
        sums[site] = sum(float(squares[name][inside].sum()) for name, inside in members.items())
    shares = {site: found / total for site, found in sums.items()}
    return math.sqrt(total), {**shares, "rest": 1 - sum(shares.values())}


def assert_shares(found: dict[str, Any], norm: float, shares: dict[str, float]) -> None:
    assert found["update_norm"] == pytest.approx(norm)
    assert found["updates"] == pytest.approx(shares, abs=1e-12)
    assert sum(found["updates"].values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "mixtral"])
def test_shares_are_those_of_two_checkpoints(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path)
    neuron_map, before = NeuronMap.of(model), reference.weights(model)
    frozen = next(iter(neuron_map.sites))
    optimizer = reference.adamw(model)
    shares = UpdateShares(tmp_path, neuron_map)
    assert shares.measure(model, optimizer)["update_norm"] == 0
    freezer = freeze(model, optimizer, one_site(neuron_map, frozen))
    reference.train(model, optimizer, reference.batches(2))
    freezer.check()
    found = shares.measure(model, optimizer)
    assert_shares(found, *expected(model, before, reference.weights(model)))
    assert found["updates"][frozen] == 0
    assert all(share > 0 for site, share in found["updates"].items() if site != frozen)


def test_adapters_move_no_weights_of_the_checkpoint(tmp_path: Path) -> None:
    model = saved("mistral", tmp_path)
    neuron_map = NeuronMap.of(model)
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    assert UpdateShares(tmp_path, neuron_map).measure(model, reference.adamw(model)) == {}
