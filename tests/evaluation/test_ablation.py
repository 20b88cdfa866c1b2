"""Pruned neurons against a model whose weights for them are zero."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from neurofreeze.errors import MaskError
from neurofreeze.evaluation.ablation import ablated
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from tests import reference, tiny
from tests.reference import mask_for
from tests.test_architectures import CASES

IDS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("granularity", ["head", "channel"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox"])
def test_ablating_is_removing_the_weights_that_write(architecture: str, granularity: Any) -> None:
    model = tiny.model(architecture)
    mask = mask_for(model, granularity=granularity)
    removed = copy.deepcopy(model)
    with torch.no_grad():
        for name, site in NeuronMap.of(model, granularity).sites.items():
            weight = dict(removed.named_parameters())[site.writes.parameter]
            for channel in site.writes.index[mask.bits[name]].reshape(-1).tolist():
                weight.select(site.writes.axis, channel).zero_()
    whole = logits(model)
    with ablated(model, mask):
        torch.testing.assert_close(logits(model), logits(removed), rtol=0, atol=1e-12)
        assert not torch.allclose(logits(model), whole)
    assert torch.equal(logits(model), whole)


def changed(model: Any, where: reference.Dense) -> Any:
    """A copy with these elements zero."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            if name in where:
                parameter[where[name]] = 0
    return copied


@pytest.mark.parametrize("architecture", [name for name, case in CASES.items() if case.experts])
def test_ablating_neurons_of_experts_is_removing_what_they_read_or_write(architecture: str) -> None:
    model = tiny.model(architecture)
    mask = mask_for(model)
    # Heads with a norm of their own, or gates, are another test's.
    bits = {name: found & ("attention" not in name) for name, found in mask.bits.items()}
    assert any(found.any() and not found.all() for name, found in bits.items() if name.endswith("experts"))
    mask = NeuronMask(bits, mask.config)
    owned = reference.dense(model, mask)
    writes = {site.writes.parameter for site in NeuronMap.of(model).sites.values()}
    whole = logits(model)
    with ablated(model, mask):
        found = logits(model)
    for chosen in (writes, owned.keys() - writes, owned.keys()):
        removed = logits(changed(model, {name: owned[name] for name in chosen}))
        torch.testing.assert_close(found, removed, rtol=0, atol=1e-12)
    assert not torch.allclose(found, whole)
    assert torch.equal(logits(model), whole)


def test_no_neuron_ablated_changes_nothing() -> None:
    model = tiny.model("llama")
    whole = logits(model)
    with ablated(model, NeuronMask.none(NeuronMap.of(model))):
        assert torch.equal(logits(model), whole)


def test_hooks_are_gone_after_an_error() -> None:
    model = tiny.model("llama")

    def interrupted() -> None:
        with ablated(model, mask_for(model)):
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        interrupted()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_mask_for_another_model_is_refused() -> None:
    model = tiny.model("llama")
    with pytest.raises(MaskError, match="made for another model"), ablated(model, mask_for(tiny.model("gpt2"))):
        pass
