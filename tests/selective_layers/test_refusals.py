"""What cannot be divided is refused, by name and before the model is changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DataParallel

import neurofreeze as nf
from neurofreeze.errors import ArchitectureError, FreezeError, MaskError
from neurofreeze.selective_layers.modules import Selective
from neurofreeze.verification import loaded_fingerprint
from tests import reference, tiny
from tests.reference import mask_for

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def model() -> Any:
    return tiny.model("llama")


def assert_untouched(model: Any) -> None:
    assert all(p.requires_grad for p in model.parameters() if p.is_floating_point())
    assert not any(isinstance(module, Selective) for module in model.modules())
    assert "save_pretrained" not in vars(model)


def test_a_misspelt_way_to_train(model: Any) -> None:
    with pytest.raises(FreezeError, match="train is 'mask'; expected 'masked' or 'unmasked'"):
        nf.selective(model, mask_for(model), train="mask")
    assert_untouched(model)


def test_a_mask_for_another_model(model: Any) -> None:
    with pytest.raises(MaskError, match="made for another model"):
        nf.selective(model, mask_for(tiny.config("llama", intermediate_size=71)))
    assert_untouched(model)


def test_a_mask_made_on_other_weights(model: Any) -> None:
    mask = mask_for(model)
    made_on = mask.with_config(fingerprint=loaded_fingerprint(model, mask))
    nf.selective(copy.deepcopy(model), made_on)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 1
    with pytest.raises(MaskError, match="field 'fingerprint': the mask was made on weights with"):
        nf.selective(model, made_on)
    assert_untouched(model)


@pytest.mark.parametrize("train", ["masked", "unmasked"])
def test_masks_that_choose_nothing_or_everything(model: Any, train: Any) -> None:
    none = nf.NeuronMask.none(nf.NeuronMap.of(model))
    for mask in (none, ~none):
        with pytest.raises(MaskError, match="of 152 neurons, so there is nothing to divide"):
            nf.selective(model, mask, train=train)
    assert_untouched(model)


def test_a_selective_model(model: Any) -> None:
    mask = mask_for(model)
    nf.selective(model, mask)
    with pytest.raises(FreezeError, match=r"selective already; nf\.merge makes it ordinary"):
        nf.selective(model, mask)


@pytest.mark.parametrize("wrap", [DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models(wrap: Any, model: Any) -> None:
    with pytest.raises(FreezeError, match=r"not wrapped or sharded yet, found (DataParallel|OptimizedModule); call"):
        nf.selective(wrap(model), mask_for(model))
    assert_untouched(model)


ADAPTERS = "selective layers and adapters of PEFT do not train together"


def wrapped_by_peft(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(target_modules=["up_proj"]))


def with_an_adapter(model: Any) -> Any:
    # Of a layer that holds no neurons.
    model.add_adapter(LoraConfig(target_modules=["embed_tokens"]))
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("adapted", [wrapped_by_peft, with_an_adapter])
def test_models_with_adapters(adapted: Any, model: Any) -> None:
    found = adapted(model)
    with pytest.raises(FreezeError, match=ADAPTERS):
        nf.selective(found, mask_for(model), train="unmasked")
    assert not any(isinstance(module, Selective) for module in model.modules())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("adapted", [wrapped_by_peft, with_an_adapter])
def test_adapters_over_selective_layers(adapted: Any, model: Any) -> None:
    mask = mask_for(model)
    found = adapted(nf.selective(model, mask))
    (ids,) = reference.batches(1)[0]
    optimizer = torch.optim.SGD([p for p in found.parameters() if p.requires_grad], lr=0.1)
    for refused in (
        lambda: found(input_ids=ids),
        lambda: nf.freeze(found, optimizer, ~mask),
        lambda: nf.merge(found),
    ):
        with pytest.raises(FreezeError, match=ADAPTERS):
            refused()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("train", ["masked", "unmasked"])
def test_frozen_weights_whose_gradients_are_switched_on(train: Any, model: Any) -> None:
    nf.selective(model, mask_for(model), train)
    inputs = torch.arange(6)[None]
    model.train()
    model(inputs)
    model.requires_grad_(True)
    with pytest.raises(FreezeError, match=r"requires_grad was switched on for model\..*, which selective layers keep"):
        model(inputs)


def test_adapters_that_were_taken_away_again(model: Any) -> None:
    names = list(model.state_dict())
    found = wrapped_by_peft(nf.selective(model, mask_for(model))).unload()
    (ids,) = reference.batches(1)[0]
    found(input_ids=ids)
    nf.merge(found)
    assert list(found.state_dict()) == names
    assert not found._forward_pre_hooks


def test_weights_that_are_one(model: Any) -> None:
    mask = mask_for(model)
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(FreezeError, match=rf"{UP}.weight and model.layers.1.mlp.up_proj.weight are one parameter"):
        nf.selective(model, mask)
    assert_untouched(model)


def test_weights_that_are_not_there(model: Any) -> None:
    mask = mask_for(model)
    model.get_submodule(UP).bias = None
    with pytest.raises(FreezeError, match=f"the model has no parameter {UP}.bias"):
        nf.selective(model, mask)
    assert_untouched(model)


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (torch.ones(70, 36, dtype=torch.int8), r"torch.int8 of shape \(70, 36\)"),
        (torch.ones(1260, 1, dtype=torch.uint8), r"torch.uint8 of shape \(1260, 1\)"),
        (torch.ones(630, 1, dtype=torch.bfloat16), r"torch.bfloat16 of shape \(630, 1\)"),
    ],
)
def test_quantized_weights(packed: torch.Tensor, said: str, model: Any) -> None:
    mask = mask_for(model)
    model.get_submodule(UP).weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(FreezeError, match=f"{UP}.weight is {said}; selective layers need ordinary floating point"):
        nf.selective(model, mask)
    model.get_submodule(UP).weight = None
    assert_untouched(model)


def test_models_of_which_nothing_would_train(model: Any) -> None:
    model.requires_grad_(False)
    with pytest.raises(FreezeError, match="nothing would train: requires_grad is off"):
        nf.selective(model, mask_for(model))


def test_modules_that_are_no_language_model() -> None:
    with pytest.raises(ArchitectureError):
        nf.selective(torch.nn.Linear(2, 2), mask_for(tiny.config("llama")))


def test_merging_an_ordinary_model(model: Any) -> None:
    with pytest.raises(FreezeError, match="the model has no selective layers"):
        nf.merge(model)
