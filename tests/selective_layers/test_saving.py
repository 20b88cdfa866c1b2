"""What a selective model saves and loads is what the ordinary one would."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import neurofreeze as nf
from neurofreeze.selective_layers.modules import Selective
from tests import reference, tiny
from tests.selective_layers import twins
from tests.selective_layers.twins import MODES, Train, adamw

ARCHITECTURES = ["llama", "gpt2", "phi3", "bloom", "mixtral", "gpt_oss", "deepseek_v3"]
UP = "model.layers.1.mlp.up_proj"
((IDS,),) = reference.batches(1, seed=9)


def trained(architecture: str, train: Train, dtype: torch.dtype = torch.float32) -> twins.Twins:
    pair = twins.of(architecture, train, dtype)
    reference.train(pair.selective, adamw(pair.selective), reference.batches(2))
    return pair


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("train", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_loads_as_an_ordinary_one_with_the_same_outputs(
    architecture: str, train: Train, tmp_path: Path
) -> None:
    pair = trained(architecture, train)
    pair.ordinary.save_pretrained(tmp_path / "base")
    pair.selective.save_pretrained(tmp_path / "tuned")
    loaded, information = AutoModelForCausalLM.from_pretrained(
        tmp_path / "tuned", experts_implementation="eager", output_loading_info=True
    )
    assert not any(information[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded) is type(pair.ordinary)
    assert torch.equal(logits(loaded), logits(pair.selective))
    assert not torch.equal(logits(loaded), logits(pair.ordinary))
    for (name, p), before in zip(loaded.named_parameters(), pair.ordinary.parameters(), strict=True):
        at = pair.frozen[name]
        assert torch.equal(reference.bits(p)[at], reference.bits(before)[at]), name


@pytest.mark.parametrize("train", MODES)
def test_a_saved_model_verifies(train: Train, tmp_path: Path) -> None:
    pair = trained("llama", train, torch.bfloat16)
    pair.ordinary.save_pretrained(tmp_path / "base")
    pair.selective.save_pretrained(tmp_path / "tuned")
    outcome = nf.verify(tmp_path / "base", tmp_path / "tuned", pair.mask if train == "unmasked" else ~pair.mask)
    assert outcome.ok, str(outcome)
    assert outcome.only_in_one == []
    assert outcome.frozen > 5_000
    assert outcome.trainable_changed > 2_000


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_state_dict_is_the_ordinary_one(architecture: str) -> None:
    pair = twins.of(architecture, "unmasked")
    expected, found = pair.ordinary.state_dict(), pair.selective.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name

    reference.train(pair.selective, adamw(pair.selective), reference.batches(1))
    found = pair.selective.state_dict()
    merged = nf.merge(copy.deepcopy(pair.selective))
    assert logits(merged).equal(logits(pair.selective))
    for name, tensor in merged.state_dict().items():
        assert torch.equal(found[name], tensor), name
    assert found.keys() == pair.selective.state_dict(keep_vars=True).keys()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_ordinary_state_dict_loads(architecture: str, assign: bool) -> None:
    other = tiny.model(architecture, seed=5)
    pair = twins.of(architecture, "unmasked")
    trainable = [name for name, p in pair.selective.named_parameters() if p.requires_grad]
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    assert not any(pair.selective.load_state_dict(state, assign=assign))
    pair.selective.tie_weights()  # which assigning parts, here as in the ordinary model
    assert [name for name, p in pair.selective.named_parameters() if p.requires_grad] == trainable
    assert torch.equal(logits(pair.selective), logits(other))
    # The loaded model trains from there.
    frozen = reference.dense(other, pair.mask)
    reference.train_frozen(other, adamw(other), reference.batches(2), frozen)
    reference.train(pair.selective, adamw(pair.selective), reference.batches(2))
    assert twins.distance(other, pair.selective) <= 1e-12


def test_a_missing_key_is_told_by_its_ordinary_name() -> None:
    pair = twins.of("llama", "unmasked")
    state = pair.ordinary.state_dict()
    del state[f"{UP}.weight"]
    missing = pair.selective.load_state_dict(state, strict=False).missing_keys
    assert f"{UP}.weight" in missing


def test_what_trains_in_float32_is_saved_so_and_what_is_frozen_keeps_its_bits(tmp_path: Path) -> None:
    """So accelerate has it under FSDP2, and a resumed training must not lose the difference."""
    pair = twins.of("llama", "masked", torch.bfloat16)
    pair.ordinary.save_pretrained(tmp_path / "base")
    for p in pair.selective.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    module = pair.selective.get_submodule(UP)
    with torch.no_grad():
        module.weight_trained.add_(1e-4)
    expected = module.weight_trained.detach().clone()
    state = {name: tensor.clone() for name, tensor in pair.selective.state_dict().items()}
    assert state[f"{UP}.weight"].dtype == torch.float32
    with torch.no_grad():
        module.weight_trained.zero_()
    pair.selective.load_state_dict(state)
    assert torch.equal(module.weight_trained, expected)
    assert module._parameters["weight"].dtype == torch.bfloat16
    ordinary = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    assigned = copy.deepcopy(pair.selective)
    assigned.load_state_dict(ordinary, assign=True)
    assert assigned.get_submodule(UP).weight_trained.dtype == torch.float32
    pair.selective.save_pretrained(tmp_path / "tuned")
    outcome = nf.verify(tmp_path / "base", tmp_path / "tuned", ~pair.mask)
    assert outcome.ok
    assert outcome.trainable_changed == expected.numel()


def test_gathered_parameters_are_merged_when_saved(tmp_path: Path) -> None:
    """ZeRO-3 and its like hand save_pretrained every parameter by its own name, positionally or not."""
    pair = trained("llama", "unmasked")
    gathered = {name: p.detach().clone() for name, p in pair.selective.named_parameters()}
    assert f"{UP}.weight_trained" in gathered
    for folder, call in {"named": {"state_dict": gathered}, "placed": None}.items():
        if call:
            pair.selective.save_pretrained(tmp_path / folder, **call)
        else:
            pair.selective.save_pretrained(tmp_path / folder, True, gathered)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert torch.equal(logits(loaded), logits(pair.selective))


def test_moving_the_model_moves_what_trains() -> None:
    pair = twins.of("llama", "unmasked")
    pair.selective.to(torch.float32)
    assert {p.dtype for p in pair.selective.parameters()} == {torch.float32}
    assert torch.equal(logits(pair.selective), logits(pair.ordinary.to(torch.float32)))
    empty = pair.selective.to("meta")
    assert list(empty.state_dict()) == list(pair.ordinary.state_dict())
    assert any(isinstance(module, Selective) for module in empty.modules())
