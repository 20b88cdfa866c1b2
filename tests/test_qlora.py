"""QLoRA with bitsandbytes' own layers: frozen neurons get nothing from adapters on a quantized base."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import bitsandbytes
import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from neurofreeze import FreezeError, NeuroFreezeWarning, NeuronMask, freeze
from neurofreeze.freezer import Freezer
from neurofreeze.merging import merge_adapters
from tests import lora, reference, tiny
from tests.reference import Dense, mask_for

STEPS = 4
# Widths that bitsandbytes' blocks of 64 divide.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4, constants quantized too": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
    "nf4, kept as bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": torch.bfloat16,
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
# bitsandbytes says on CPUs that it computes in half precision, PEFT that a hook of transformers is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Base(NamedTuple):
    """A checkpoint in float32, and a mask with its dense form, element by element."""

    folder: Path
    model: Any
    mask: NeuronMask
    frozen: Dense

    def quantized(self, **kind: Any) -> Any:
        """The checkpoint with every linear layer but lm_head quantized."""
        config = BitsAndBytesConfig(**kind)
        return AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, quantization_config=config, device_map="cpu"
        )


@pytest.fixture
def base(tmp_path: Path) -> Base:
    model = tiny.model("llama", dtype=torch.float32, **SIZES)
    model.save_pretrained(tmp_path / "base")
    mask = mask_for(model)
    return Base(tmp_path / "base", model, mask, reference.dense(model, mask))


def trained(model: Any, mask: NeuronMask | None) -> Freezer | None:
    """Train the adapters for some steps; with a mask under the freezer, which is returned."""
    optimizer = lora.adamw(model)
    freezer = None
    if mask is not None:
        with pytest.warns(NeuroFreezeWarning, match="the base is quantized, so 14 of its weights cannot be compared"):
            freezer = freeze(model, optimizer, mask)
    reference.train(model.train(), optimizer, reference.batches(STEPS))
    return freezer


def layers(model: Any, frozen: Dense) -> list[tuple[Any, torch.Tensor]]:
    """Every adapted layer, and where its weight is frozen."""
    found = [
        (module, frozen[f"{name.removeprefix('base_model.model.')}.weight"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    ]
    assert len(found) == 14
    return found


def packed(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the quantized weights, as bytes."""
    quantized = (bitsandbytes.nn.Params4bit, bitsandbytes.nn.Int8Params)
    found = {name: p for name, p in model.named_parameters() if isinstance(p, quantized)}
    return {name: p.detach().clone().view(torch.uint8) for name, p in found.items()}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_adapters_add_exactly_nothing_to_frozen_neurons(kind: dict[str, Any], base: Base) -> None:
    model = lora.adapted(base.quantized(**kind))
    start = packed(model)
    freezer = trained(model, base.mask)
    assert freezer is not None
    assert len(freezer.adapters.parts) == 14
    assert freezer.check() == freezer.fingerprint
    for layer, frozen in layers(model, base.frozen):
        assert type(layer.get_base_layer()).__module__.startswith("bitsandbytes.")
        delta = layer.get_delta_weight("default")
        assert frozen.any()
        assert not delta[frozen].any()
        assert delta[~frozen].all()
    assert len(start) == 14
    assert all(torch.equal(p, start[name]) for name, p in packed(model).items())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_without_the_mask_they_would_change_them_all(kind: dict[str, Any], base: Base) -> None:
    model = lora.adapted(base.quantized(**kind))
    trained(model, None)
    for layer, frozen in layers(model, base.frozen):
        assert layer.get_delta_weight("default")[frozen].all()


def test_a_layer_s_frozen_outputs_are_the_quantized_base_s(base: Base) -> None:
    model = lora.adapted(base.quantized(**KINDS["nf4"]))
    trained(model, base.mask)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    rows = base.frozen["model.layers.0.mlp.up_proj.weight"].all(1)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        now, before = layer(x), layer.get_base_layer()(x)
    assert torch.equal(now[:, rows], before[:, rows])
    assert not torch.isclose(now[:, ~rows], before[:, ~rows]).all(0).any()


@pytest.mark.parametrize("masked", [True, False])
def test_merged_into_the_base_before_quantization_frozen_bits_are_its_own(
    masked: bool, base: Base, tmp_path: Path
) -> None:
    model = lora.adapted(base.quantized(**KINDS["nf4"]))
    trained(model, base.mask if masked else None)
    model.save_pretrained(tmp_path / "adapter")
    whole = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "adapter")
    now, start = lora.merged(whole), reference.weights(base.model)
    weights = {name: where for name, where in base.frozen.items() if name.endswith("weight")}
    changed = lora.changed(now, {name: start[name] for name in weights}, weights)
    assert changed == (0 if masked else sum(int(where.sum()) for where in weights.values()))
    assert lora.trained(now, start, base.frozen) > 10_000


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_merging_into_the_quantized_base_is_refused(kind: dict[str, Any], base: Base) -> None:
    model = lora.adapted(base.quantized(**kind))
    start = packed(model)
    with pytest.raises(FreezeError, match=r"is quantized, so that merging would round it again; load the base in"):
        merge_adapters(model, base.mask)
    assert all(torch.equal(p, start[name]) for name, p in packed(model).items())


def test_the_usual_recipe_of_checkpointing_and_float32_norms(base: Base) -> None:
    model = lora.adapted(prepare_model_for_kbit_training(base.quantized(**KINDS["nf4"])))
    assert model.is_gradient_checkpointing
    freezer = trained(model, base.mask)
    assert freezer is not None
    freezer.check()
    for layer, frozen in layers(model, base.frozen):
        delta = layer.get_delta_weight("default")
        assert not delta[frozen].any()
        assert delta[~frozen].all()


def test_quantized_weights_of_layers_without_adapters_need_no_holding(base: Base) -> None:
    model = lora.adapted(base.quantized(**KINDS["nf4"]), target_modules=["down_proj"])
    freezer = trained(model, base.mask)
    assert freezer is not None
    assert set(freezer.adapters.parts) == {
        f"model.layers.{layer}.mlp.down_proj.lora_A.default.weight" for layer in range(2)
    }


@pytest.mark.parametrize("optimizer", ["AdamW8bit", "PagedAdamW8bit", "Lion8bit"])
def test_8_bit_optimizers_of_adapters_are_refused(optimizer: str, base: Base) -> None:
    model = lora.adapted(base.quantized(**KINDS["nf4"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NeuroFreezeWarning)
        with pytest.raises(FreezeError, match=f"{optimizer} is not among the optimizers"):
            freeze(model, getattr(bitsandbytes.optim, optimizer)(lora.trainable(model), lr=0.01), base.mask)
