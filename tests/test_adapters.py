"""Freezing under LoRA: the effective weight of a frozen neuron keeps its bits, merged or not; else it is refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from rich.console import Console

from neurofreeze import FreezeError, MaskError, NeuroFreezeWarning, NeuronMask, freeze
from neurofreeze.merging import merge_adapters
from tests import lora, reference, tiny
from tests.reference import assert_no_moments, assert_same, mask_for

STEPS = 6
LAYER = "model.layers.0.mlp"
PREFIX = "base_model.model."

# What users vary -> options of LoraConfig.
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 32},
    "negative scaling": {"lora_alpha": -8},
    "biases of adapters": {"lora_bias": True},
    "biases of adapted layers": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "dropout": {"lora_dropout": 0.3},
    "gaussian": {"init_lora_weights": "gaussian"},
    "ranks by layer": {"rank_pattern": {"up_proj": 2, "down_proj": 7}},
    "some layers": {"target_modules": ["q_proj", "down_proj"]},
    "embeddings and head": {"target_modules": ["embed_tokens", "lm_head", "up_proj"], "tie_word_embeddings": False},
    "head trained whole": {"target_modules": ["up_proj", "o_proj"], "modules_to_save": ["lm_head"]},
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "Adam": torch.optim.Adam,
    "SGD": lambda p, **options: torch.optim.SGD(p, momentum=0.9, **options),
}


@pytest.fixture
def base() -> Any:
    return tiny.model("llama")


@pytest.fixture
def mask(base: Any) -> NeuronMask:
    return mask_for(base)


def assert_frozen(model: Any, base: Any, mask: NeuronMask) -> None:
    """Every effective weight of a frozen neuron is the base's, and the rest trained."""
    start, frozen = reference.weights(base), reference.dense(base, mask)
    now = lora.merged(model)
    assert lora.changed(now, start, frozen) == 0
    assert lora.trained(now, start, frozen) > 0


def assert_guarantee(
    base: Any, make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, seed: int = 1, **options: Any
) -> None:
    """Train under the freezer and by hand; effective weights, adapters, norms and moments must all agree, in bits."""
    mask = mask_for(base, seed=seed)
    model, other = lora.adapted(base, **options).train(), lora.adapted(base, **options).train()
    frozen = lora.dense(other, reference.dense(base, mask))
    data = reference.batches(STEPS, accumulation=2)
    settings = {"lr": 0.05, "weight_decay": 0.1}
    lora.zero(other, frozen)
    torch.manual_seed(0)
    expected = reference.train_frozen(other, make(lora.trainable(other), **settings), data, frozen)

    optimizer = make(lora.trainable(model), **settings)
    freezer = freeze(model, optimizer, mask)
    torch.manual_seed(0)
    norms = reference.train(model, optimizer, data)

    assert_same(model, other)
    assert all(torch.equal(a, b) for a, b in zip(norms, expected, strict=True))
    assert_no_moments(model, optimizer, frozen)
    assert freezer.check() == freezer.fingerprint
    assert_frozen(model.eval(), base, mask)
    assert sum(int(where.sum()) for name, where in frozen.items() if ".lora_" in name) > 100


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_guarantee_for_every_kind_of_lora(options: dict[str, Any]) -> None:
    options = dict(options)
    changes = {key: options.pop(key) for key in ("tie_word_embeddings",) if key in options}
    assert_guarantee(tiny.model("llama", **changes), **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_guarantee_under_several_optimizers(optimizer: str, base: Any) -> None:
    assert_guarantee(base, OPTIMIZERS[optimizer])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("architecture", ["gpt2", "phi3", "gpt_neox", "falcon-groups", "bloom", "qwen3_5_text"])
def test_the_guarantee_where_matrices_are_fused_or_transposed(architecture: str) -> None:
    assert_guarantee(tiny.model(architecture))


# PEFT can merge biases of adapters only into layers that have a bias.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "bloom"])
def test_the_guarantee_for_biases_of_adapters_on_fused_or_transposed_matrices(architecture: str) -> None:
    assert_guarantee(tiny.model(architecture), lora_bias=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_have_the_base_s_bits_in_lower_precision(dtype: torch.dtype) -> None:
    base = tiny.model("llama", dtype=dtype)
    mask = mask_for(base)
    model = lora.adapted(base)
    optimizer = lora.adamw(model)
    freezer = freeze(model, optimizer, mask)
    reference.train(model, optimizer, reference.batches(STEPS))
    freezer.check()
    assert_frozen(model, base, mask)


def test_without_freezing_frozen_neurons_would_change(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base)
    reference.train(model, lora.adamw(model), reference.batches(STEPS))
    frozen = {name: where for name, where in reference.dense(base, mask).items() if name.endswith("weight")}
    start = {name: p for name, p in reference.weights(base).items() if name in frozen}
    assert lora.changed(lora.merged(model), start, frozen) == sum(int(where.sum()) for where in frozen.values())


def test_a_fresh_adapter_computes_the_same_with_its_parts_at_zero(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base)
    (ids,) = reference.batches(1)[0]
    freeze(model, lora.adamw(model), mask)
    assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_adapters_injected_by_transformers_are_found(base: Any, mask: NeuronMask) -> None:
    model = copy.deepcopy(base)
    model.add_adapter(LoraConfig(r=4, target_modules=["up_proj", "down_proj"]))
    optimizer = lora.adamw(model)
    assert len(freeze(model, optimizer, mask).adapters.parts) == 4
    reference.train(model, optimizer, reference.batches(STEPS))
    frozen = reference.dense(base, mask)
    for name in ("up_proj", "down_proj"):
        layer = model.get_submodule(f"{LAYER}.{name}")
        assert not layer.get_delta_weight("default")[frozen[f"{LAYER}.{name}.weight"]].any()
        assert layer.get_delta_weight("default").any()


def test_a_base_weight_that_trains_beside_its_adapter_is_frozen_as_usual(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base)
    layer = model.get_submodule(f"{PREFIX}{LAYER}.up_proj")
    layer.base_layer.weight.requires_grad_(True)
    optimizer = lora.adamw(model)
    freezer = freeze(model, optimizer, mask)
    reference.train(model, optimizer, reference.batches(STEPS))
    freezer.check()
    assert not torch.equal(layer.base_layer.weight, base.get_submodule(f"{LAYER}.up_proj").weight)
    assert_frozen(model, base, mask)


def test_a_trained_base_weight_missing_from_the_optimizer_is_refused(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base)
    optimizer = lora.adamw(model)
    model.get_submodule(f"{PREFIX}{LAYER}.up_proj").base_layer.weight.requires_grad_(True)
    with pytest.raises(FreezeError, match=r"up_proj\.weight is in the mask but in no parameter group"):
        freeze(model, optimizer, mask)


def test_the_fingerprint_is_that_of_the_base(base: Any, mask: NeuronMask) -> None:
    fingerprint = freeze(base, reference.adamw(base), mask).fingerprint
    model = lora.adapted(base)
    made_on = mask.with_config(fingerprint=fingerprint)
    assert freeze(model, lora.adamw(model), made_on).fingerprint == fingerprint
    other = lora.adapted(tiny.model("llama", seed=1))
    with pytest.raises(MaskError, match="field 'fingerprint': the mask was made on weights with"):
        freeze(other, lora.adamw(other), made_on)


def test_the_summary_counts_what_is_held(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base, bias="all")
    frozen = lora.dense(model, reference.dense(base, mask))
    summary = freeze(model, lora.adamw(model), mask).summary()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert summary.total_elements == sum(p.numel() for p in trained.values())
    assert summary.frozen_elements == sum(int(frozen[name].sum()) for name in trained)
    assert sum(site.elements for site in summary.sites) + summary.rest_elements == summary.total_elements
    printed = io.StringIO()
    Console(file=printed, width=200).print(summary)
    assert "adapter params held at zero" in printed.getvalue()
    assert f"frozen adapter params: {summary.frozen_elements:,}" in str(summary)


# Several adapters, and adapters that were trained before.


def test_every_adapter_in_use_is_held_and_others_are_left_alone(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base)
    config = LoraConfig(r=3, target_modules=["up_proj", "down_proj"], init_lora_weights=False)
    model.add_adapter("second", LoraConfig(r=3, target_modules=["up_proj", "down_proj"]))
    model.add_adapter("unused", config)
    model.base_model.set_adapter(["default", "second"])
    unused = {name: p.detach().clone() for name, p in model.named_parameters() if ".unused." in name}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    freezer = freeze(model, optimizer, mask)
    reference.train(model, optimizer, reference.batches(STEPS))
    freezer.check()
    assert_frozen(model, base, mask)
    named = dict(model.named_parameters())
    assert all(torch.equal(named[name], values) for name, values in unused.items())
    layer = model.get_submodule(f"{PREFIX}{LAYER}.up_proj")
    assert layer.get_delta_weight("second").any()


def test_another_active_adapter_is_noticed(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base)
    model.add_adapter("second", LoraConfig(r=3, target_modules=["up_proj"]))
    model.set_adapter("default")
    freezer = freeze(model, lora.adamw(model), mask)
    model.set_adapter("second")
    with pytest.raises(FreezeError, match=r"the active adapters are \['second'\], when freezing began"):
        freezer.check()


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_adapters_that_came_after_freezing_began_are_noticed(base: Any, mask: NeuronMask) -> None:
    model = copy.deepcopy(base)
    freezer = freeze(model, torch.optim.AdamW(model.parameters()), mask)
    freezer.check()
    get_peft_model(model, LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(FreezeError, match=r"up_proj\.lora_A\.default\.weight came into the model after freezing began"):
        freezer.check()


def test_another_adapter_that_came_after_freezing_began_is_noticed_though_it_is_switched_off(
    base: Any, mask: NeuronMask
) -> None:
    model = lora.adapted(base)
    freezer = freeze(model, lora.adamw(model), mask)
    freezer.check()
    model.add_adapter("second", LoraConfig(r=3, target_modules=["up_proj"]))
    model.set_adapter("second")
    model.set_adapter("default")
    with pytest.raises(FreezeError, match=r"up_proj\.lora_A\.second\.weight came into the model after freezing began"):
        freezer.check()


def test_an_adapter_that_was_trained_with_the_mask_goes_on(base: Any, mask: NeuronMask, tmp_path: Path) -> None:
    first = lora.adapted(base)
    optimizer = lora.adamw(first)
    freeze(first, optimizer, mask)
    reference.train(first, optimizer, reference.batches(STEPS))
    again = PeftModel.from_pretrained(copy.deepcopy(base), saved(first, tmp_path), is_trainable=True)
    optimizer = lora.adamw(again)
    freezer = freeze(again, optimizer, mask)
    assert_same(again, first)
    reference.train(again, optimizer, reference.batches(STEPS, seed=1))
    freezer.check()
    assert_frozen(again, base, mask)


@pytest.mark.parametrize("is_trainable", [True, False])
def test_an_adapter_that_changes_frozen_neurons_already_is_refused(
    base: Any, mask: NeuronMask, tmp_path: Path, is_trainable: bool
) -> None:
    first = lora.adapted(base)
    reference.train(first, lora.adamw(first), reference.batches(1))
    again = PeftModel.from_pretrained(copy.deepcopy(base), saved(first, tmp_path), is_trainable=is_trainable)
    before = reference.weights(again)
    with pytest.raises(FreezeError, match=r"the adapter changes frozen neurons already: .*, as are 13 others of 14"):
        freeze(again, reference.adamw(again), mask)
    assert all(torch.equal(p, before[name]) for name, p in again.named_parameters())


@pytest.mark.parametrize("options", [{"target_modules": ["down_proj"]}, {"target_modules": ["up_proj"]}])
def test_rows_and_columns_that_were_trained_are_each_found(base: Any, mask: NeuronMask, options: Any) -> None:
    model = lora.adapted(base, **options)
    reference.train(model, lora.adamw(model), reference.batches(1))
    with pytest.raises(FreezeError, match="the adapter changes frozen neurons already"):
        freeze(model, lora.adamw(model), mask)


def test_a_trained_bias_of_an_adapter_is_found(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base, lora_bias=True)
    with torch.no_grad():
        model.get_submodule(f"{PREFIX}{LAYER}.up_proj").lora_B["default"].bias.fill_(1)
    with pytest.raises(FreezeError, match=r"up_proj\.lora_B\.default\.bias is not zero where it belongs to them"):
        freeze(model, lora.adamw(model), mask)


@pytest.mark.parametrize("how", ["pissa", "olora", "orthogonal", False])
def test_adapters_that_do_not_begin_at_zero_are_refused(base: Any, mask: NeuronMask, how: Any) -> None:
    model = lora.adapted(base.float(), init_lora_weights=how)
    with pytest.raises(FreezeError, match=r"initialised in a way that edits the base \(PiSSA, OLoRA"):
        freeze(model, lora.adamw(model), mask)


def test_a_merged_adapter_is_refused(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base)
    model.merge_adapter()
    with pytest.raises(FreezeError, match="the adapters are merged into the weight"):
        freeze(model, lora.adamw(model), mask)


# What would not stay bit for bit.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"]), "is of type IA3"),
        (VeraConfig(target_modules=["up_proj"]), "is of type VERA"),
        (LoHaConfig(target_modules=["up_proj"]), "is of type LOHA"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "is of type PROMPT_TUNING"),
    ],
    ids=lambda value: getattr(value, "peft_type", ""),
)
def test_other_adapters_are_refused_by_name(config: Any, message: str, base: Any, mask: NeuronMask) -> None:
    model = get_peft_model(base, config)
    with pytest.raises(FreezeError, match=message):
        freeze(model, lora.adamw(model), mask)


def test_other_adapters_injected_without_a_config_are_refused(base: Any, mask: NeuronMask) -> None:
    inject_adapter_in_model(LoHaConfig(target_modules=["up_proj"]), base)
    del base.peft_config
    with pytest.raises(FreezeError, match=r"up_proj holds frozen neurons and PEFT adapts it by peft\.tuners\.loha"):
        freeze(base, lora.adamw(base), mask)


def test_dora_is_refused_where_neurons_are_frozen(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base, use_dora=True)
    with pytest.raises(FreezeError, match=r"is a DoraLinearVariant, .*use plain LoRA, use_dora=False"):
        freeze(model, lora.adamw(model), mask)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("fan_in_fan_out", True, "adapted with fan_in_fan_out=True; set fan_in_fan_out=False"),
        ("out_features", 71, r"maps 36 to 71 features, its config says its weight has shape \(70, 36\)"),
    ],
)
def test_an_adapter_that_does_not_fit_its_weight_is_refused(
    base: Any, mask: NeuronMask, attribute: str, value: Any, message: str
) -> None:
    model = lora.adapted(base)
    setattr(model.get_submodule(f"{PREFIX}{LAYER}.up_proj"), attribute, value)
    with pytest.raises(FreezeError, match=message):
        freeze(model, lora.adamw(model), mask)


def test_a_copy_that_trains_whole_is_refused(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base, target_modules=["up_proj"], modules_to_save=["down_proj"])
    with pytest.raises(FreezeError, match=r"layers\.0\.mlp\.down_proj holds frozen neurons and PEFT trains a copy"):
        freeze(model, lora.adamw(model), mask)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_of_the_head_is_held_where_it_is_tied_to_frozen_embeddings(base: Any, mask: NeuronMask) -> None:
    assert base.lm_head.weight is base.model.embed_tokens.weight
    held = mask.with_rest("embeddings", "lm_head")
    model = lora.adapted(base, target_modules=["up_proj", "lm_head"]).train()
    optimizer = lora.adamw(model)
    freezer = freeze(model, optimizer, held)
    reference.train(model, optimizer, reference.batches(2))
    freezer.check()
    merged = merge_adapters(model, held)
    assert torch.equal(merged.lm_head.weight, base.lm_head.weight)
    assert torch.equal(merged.model.embed_tokens.weight, base.lm_head.weight)
    assert not torch.equal(merged.get_submodule(LAYER).up_proj.weight, base.get_submodule(LAYER).up_proj.weight)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_copy_of_the_head_is_refused_where_it_is_tied_to_frozen_embeddings(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base, target_modules=["up_proj"], modules_to_save=["lm_head"])
    with pytest.raises(FreezeError, match=r"lm_head holds frozen neurons and PEFT trains a copy"):
        freeze(model, lora.adamw(model), mask.with_rest("embeddings", "lm_head"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_adapters_of_expert_stacks_are_refused_and_may_be_left_out() -> None:
    base = tiny.model("mixtral")
    mask = mask_for(base)
    model = lora.adapted(base, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(FreezeError, match=r"experts holds frozen neurons and PEFT adapts it by .*\.ParamWrapper"):
        freeze(model, lora.adamw(model), mask)
    model = lora.adapted(base, target_modules=["q_proj", "o_proj"])
    optimizer = lora.adamw(model)
    freeze(model, optimizer, mask)
    reference.train(model, optimizer, reference.batches(STEPS))
    assert_frozen(model, base, mask)


def test_what_writes_to_the_held_part_is_noticed(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base)
    freezer = freeze(model, lora.adamw(model), mask)
    frozen = lora.dense(model, reference.dense(base, mask))
    name = f"{PREFIX}{LAYER}.down_proj.lora_A.default.weight"
    with torch.no_grad():
        dict(model.named_parameters())[name][frozen[name]] = 1e-3
    with pytest.raises(FreezeError, match=r"down_proj\.lora_A\.default\.weight: what belongs to frozen neurons is not"):
        freezer.check()


def test_what_writes_to_the_base_is_noticed(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base)
    freezer = freeze(model, lora.adamw(model), mask)
    with torch.no_grad():
        model.get_submodule(f"{PREFIX}{LAYER}.up_proj").base_layer.weight += 1
    with pytest.raises(FreezeError, match="frozen elements changed"):
        freezer.check()


# Merging.


def test_a_negative_zero_is_warned_of_and_kept_by_our_merge(base: Any, mask: NeuronMask) -> None:
    frozen = reference.dense(base, mask)
    with torch.no_grad():
        for name, p in base.named_parameters():
            if name.endswith("_proj.weight"):
                p[frozen[name]] = -0.0
    model = lora.adapted(base)
    optimizer = lora.adamw(model)
    with pytest.warns(NeuroFreezeWarning, match=r"some frozen weights are -0\.0"):
        freezer = freeze(model, optimizer, mask)
    reference.train(model, optimizer, reference.batches(STEPS))
    freezer.check()
    start = reference.weights(base)
    assert lora.changed(lora.merged(model), start, frozen) > 1000
    expected = lora.merged(model)
    now = reference.weights(merge_adapters(model, mask))
    assert lora.changed(now, start, frozen) == 0
    assert all(torch.equal(now[name], expected[name]) for name in now)


def test_our_merge_refuses_adapters_that_are_merged_already(base: Any, mask: NeuronMask) -> None:
    model = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["up_proj"], init_lora_weights=False))
    model.merge_adapter()
    with pytest.raises(FreezeError, match=r"up_proj has default merged into it"):
        merge_adapters(model, mask)


def test_our_merge_refuses_adapters_that_were_trained_without_the_mask(base: Any, mask: NeuronMask) -> None:
    model = lora.adapted(base)
    reference.train(model, lora.adamw(model), reference.batches(1))
    with pytest.raises(FreezeError, match="merging changes frozen elements of model"):
        merge_adapters(model, mask)
