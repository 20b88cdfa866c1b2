"""What pruning does: against a model whose columns are zero, with differences that are positive where it hurts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from neurofreeze.data import read
from neurofreeze.evaluation.likelihood import losses, refusal_margins
from neurofreeze.evaluation.pruning import Pruned, prune, steps
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap

HARMFUL = read("bundled:harmful/calibration", limit=3)
UTILITY = read("bundled:instructions/calibration", limit=2)


def test_a_drop_is_positive_where_the_margin_falls_and_a_rise_where_the_loss_grows() -> None:
    whole, pruned = Pruned([3.0, 1.0], [2.0, 2.0]), Pruned([1.0, 0.0], [2.5, 3.0])
    assert pruned.margin_drop(whole).value == 1.5
    assert pruned.loss_rise(whole).value == 0.75


def test_pruning_measures_the_model_without_the_columns(tiny_model: Any, tiny_tokenizer: Any) -> None:
    neuron_map = NeuronMap.of(tiny_model)
    mask = NeuronMask.random(neuron_map, 0.3, seed=0)
    without = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for name, site in neuron_map.sites.items():
            columns = torch.tensor(site.writes.index[mask.bits[name]].ravel())
            without.get_parameter(site.writes.parameter)[:, columns] = 0
    told: list[None] = []
    found = prune(tiny_model, tiny_tokenizer, mask, HARMFUL, UTILITY, batch_size=4, progress=lambda: told.append(None))
    assert found.margins == pytest.approx(refusal_margins(without, tiny_tokenizer, HARMFUL, 4), abs=1e-6)
    assert found.losses == pytest.approx(losses(without, tiny_tokenizer, UTILITY, 4, 512), abs=1e-6)
    assert len(told) == steps(HARMFUL, UTILITY, 4)
    whole = prune(tiny_model, tiny_tokenizer, None, HARMFUL, UTILITY, batch_size=4)
    assert whole.margins == pytest.approx(refusal_margins(tiny_model, tiny_tokenizer, HARMFUL, 4))
    assert whole.margins != pytest.approx(found.margins, abs=1e-3)
