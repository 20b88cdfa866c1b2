"""Freezing that cannot be guaranteed is refused, and the message says why."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from neurofreeze import freeze
from neurofreeze.errors import FreezeError, MaskError, NeuroFreezeWarning
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from tests import tiny
from tests.reference import adamw, mask_for


def test_no_mask_is_refused() -> None:
    model = tiny.model("llama")
    with pytest.raises(MaskError, match="given no mask"):
        freeze(model, adamw(model))


def test_a_mask_that_chooses_nothing_is_refused() -> None:
    model = tiny.model("llama")
    with pytest.raises(MaskError, match="chooses no neuron"):
        freeze(model, adamw(model), NeuronMask.none(NeuronMap.of(model)))


def test_freezing_every_neuron_is_warned_of() -> None:
    model = tiny.model("llama")
    with pytest.warns(NeuroFreezeWarning, match="freezes all 152 neurons"):
        freeze(model, adamw(model), ~NeuronMask.none(NeuronMap.of(model)))


def test_a_mask_for_another_model_is_refused() -> None:
    mask = mask_for(tiny.config("llama"))
    other = tiny.model("llama", intermediate_size=71)
    with pytest.raises(MaskError, match=r"field 'neurons\.layers\.0\.mlp': the mask has 70, the model has 71"):
        freeze(other, adamw(other), mask)


def test_a_mask_made_on_other_weights_is_refused() -> None:
    model, other = tiny.model("llama"), tiny.model("llama", seed=1)
    mask = mask_for(model)
    made_on = mask.with_config(fingerprint=freeze(other, adamw(other), mask).fingerprint)
    with pytest.raises(MaskError, match="field 'fingerprint': the mask was made on weights with"):
        freeze(model, adamw(model), made_on)


def test_a_parameter_missing_from_the_optimizer_is_refused_by_name() -> None:
    model = tiny.model("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if n != name])
    with pytest.raises(FreezeError, match=f"{name} is in the mask but in no parameter group of AdamW"):
        freeze(model, optimizer, mask_for(model))


def test_a_model_without_a_masked_parameter_is_refused() -> None:
    model = tiny.model("llama")
    del model.model.layers[1]
    with pytest.raises(FreezeError, match=r"model\.layers\.1\.\S+ is in the mask but not in the model"):
        freeze(model, adamw(model), mask_for(model.config))


def test_a_model_whose_shapes_are_not_its_configs_is_refused() -> None:
    model = tiny.model("llama")
    model.model.layers[0].mlp.up_proj = nn.Linear(36, 71, dtype=torch.float64)
    with pytest.raises(FreezeError, match=r"up_proj\.weight has shape \(71, 36\), its config says \(70, 36\)"):
        freeze(model, adamw(model), mask_for(model.config))


def test_weights_on_the_meta_device_are_refused() -> None:
    with torch.device("meta"):
        model = tiny.model("llama")
    with pytest.raises(FreezeError, match="has no storage yet"):
        freeze(model, adamw(model), mask_for(model))


def test_a_parameter_that_is_not_contiguous_is_refused() -> None:
    model = tiny.model("llama")
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.t().contiguous().t()
    with pytest.raises(FreezeError, match=r"up_proj\.weight is not contiguous"):
        freeze(model, adamw(model), mask_for(model))


@pytest.mark.parametrize("optimizer", [None, "AdamW", object()])
def test_what_is_no_optimizer_is_refused(optimizer: Any) -> None:
    model = tiny.model("llama")
    with pytest.raises(FreezeError, match=f"expected a torch optimizer, found {type(optimizer).__name__}"):
        freeze(model, optimizer, mask_for(model))


def test_what_is_no_module_is_refused() -> None:
    model = tiny.model("llama")
    with pytest.raises(FreezeError, match="expected a torch module to freeze, found LlamaConfig"):
        freeze(model.config, adamw(model), mask_for(model))


ENGINES = ("DataParallel", "PipelineEngine")
ZERO_OPTIMIZERS = (
    ("superoffload.superoffload_stage3", "SuperOffloadOptimizer_Stage3"),
    ("zenflow.zenflow_stage_1_and_2", "ZenFlowZeroOptimizerSequential"),
    ("zenflow.zenflow_stage_1_and_2", "ZenFlowZeroOptimizerParallel"),
)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_that_are_not_verified_are_refused_by_name(engine: str) -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    wrapper = type(engine, (nn.Module,), {})()
    wrapper.module = model
    with pytest.raises(FreezeError, match=f"freezing under {engine} is not verified"):
        freeze(wrapper, adamw(model), mask)


def test_a_layer_of_fsdp_1_inside_the_model_is_refused() -> None:
    model = tiny.model("llama")
    layer = model.model.layers[1]
    layer.__class__ = type("Wrapped", (type("FullyShardedDataParallel", (), {}), type(layer)), {})
    with pytest.raises(FreezeError, match="FullyShardedDataParallel is only inside LlamaForCausalLM"):
        freeze(model, adamw(model), mask_for(model))


def test_zero_3_parameters_under_another_optimizer_are_refused() -> None:
    model = tiny.model("llama")
    model.model.layers[0].mlp.up_proj.weight.ds_id = 0
    with pytest.raises(FreezeError, match="belong to ZeRO-3, but the optimizer is not DeepSpeed's"):
        freeze(model, adamw(model), mask_for(model))


@pytest.mark.parametrize(("place", "name"), ZERO_OPTIMIZERS)
def test_deepspeed_optimizers_that_step_elsewhere_are_refused_by_name(place: str, name: str) -> None:
    model = tiny.model("llama")
    kind = getattr(importlib.import_module(f"deepspeed.runtime.{place}"), name)
    zero = kind.__new__(kind)
    zero.optimizer = adamw(model)
    with pytest.raises(FreezeError, match=f"freezing under DeepSpeed's {name} is not verified"):
        freeze(model, zero, mask_for(model))


LIBRARIES = (
    "deepspeed.ops.adam",
    "bitsandbytes.optim",
    "torchao.optim",
    "schedulefree.adamw_schedulefree",
    "lomo_optim.lomo",
    "torch.distributed.optim.zero_redundancy_optimizer",
)


@pytest.mark.parametrize("library", LIBRARIES)
def test_optimizers_that_are_not_verified_are_refused(library: str) -> None:
    model = tiny.model("llama")
    kind = type("FusedAdam", (torch.optim.AdamW,), {"__module__": library})
    with pytest.raises(FreezeError, match="FusedAdam is not among the optimizers"):
        freeze(model, kind(model.parameters()), mask_for(model))


@pytest.mark.parametrize("name", ["Adamax", "ASGD", "Rprop"])
def test_optimizers_whose_state_is_never_zero_are_refused(name: str) -> None:
    model = tiny.model("llama")
    optimizer = type("Mine", (getattr(torch.optim, name),), {})(model.parameters())
    with pytest.raises(FreezeError, match="Mine is not among the optimizers"):
        freeze(model, optimizer, mask_for(model))
