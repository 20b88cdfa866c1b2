"""What belongs to no neuron: its kinds, and that what a mask names of it stays as it is, to the bit, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import neurofreeze as nf
from neurofreeze.checkpoints import read_config
from neurofreeze.errors import ArchitectureError, ConfigError, FreezeError, MaskError
from neurofreeze.rest import KINDS
from neurofreeze.verification import weights_fingerprint
from tests import reference, tiny
from tests.reference import adamw, mask_for

Model = Any
NORMS = {"model.norm.weight"} | {
    f"model.layers.{layer}.{name}_layernorm.weight" for layer in (0, 1) for name in ("input", "post_attention")
}


def named(model: Model, kind: str) -> set[str]:
    neuron_map = nf.NeuronMap.of(model)
    return {name for name in neuron_map.rest if kind in neuron_map.kinds[name]}


def train(model: Model, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for micro_batches in reference.batches(steps):
        reference.backward(model, micro_batches)
        optimizer.step()
        optimizer.zero_grad()


def changed(model: Model, start: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters of which any bit changed."""
    return {n for n, p in model.named_parameters() if not torch.equal(reference.bits(p), reference.bits(start[n]))}


def test_kinds_of_an_architecture_with_everything() -> None:
    model = tiny.model("gpt2")
    assert named(model, "embeddings") == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert named(model, "lm_head") == {"transformer.wte.weight"}, "it is tied"
    assert {name.removesuffix(".weight").removesuffix(".bias") for name in named(model, "norms")} == {
        f"transformer.{name}" for name in ("ln_f", "h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2")
    }
    assert {name.rpartition(".h.")[2][2:] for name in named(model, "other")} == {"attn.c_proj.bias", "mlp.c_proj.bias"}


def test_kinds_of_untied_embeddings_of_norms_of_heads_and_of_routers() -> None:
    model = tiny.model("qwen3_moe", tie_word_embeddings=False)
    assert named(model, "embeddings") == {"model.embed_tokens.weight"}
    assert named(model, "lm_head") == {"lm_head.weight"}
    assert {"model.norm.weight", "model.layers.0.self_attn.q_norm.weight"} <= named(model, "norms")
    assert named(model, "other") == {"model.layers.1.mlp.gate.weight"}, "layer 0 is dense"


@pytest.mark.parametrize("before", [True, False], ids=["without gradients", "by masked gradients"])
@pytest.mark.parametrize(
    ("kinds", "held"),
    [
        (("norms",), NORMS),
        (("embeddings",), {"model.embed_tokens.weight"}),
        (("lm_head",), {"lm_head.weight"}),
        (
            ("other",),
            {f"model.layers.{layer}.{name}.bias" for layer in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")},
        ),
    ],
)
def test_each_kind_is_held_by_itself(kinds: tuple[str, ...], held: set[str], before: bool) -> None:
    model = tiny.model("llama", tie_word_embeddings=False)
    mask = mask_for(model).with_rest(*kinds)
    if before:
        assert set(nf.freeze_rest(model, mask)) == held
    optimizer = adamw(model)
    assert before == (held.isdisjoint(n for n, p in model.named_parameters() if p.requires_grad))
    start = reference.weights(model)
    freezer = nf.freeze(model, optimizer, mask)
    train(model, optimizer)
    whole = {name for name, of_neurons in reference.dense(model, mask).items() if of_neurons.all()}
    assert set(start) - changed(model, start) == held | whole
    for name, moments in ((n, optimizer.state.get(p, {})) for n, p in model.named_parameters() if n in held):
        assert not any(v.any() for v in moments.values() if torch.is_tensor(v) and v.dim()), name
    freezer.detach()


@pytest.mark.parametrize("before", [True, False])
def test_the_check_notices_a_held_parameter_that_was_written(before: bool) -> None:
    model = tiny.model("llama")
    mask = mask_for(model).with_rest("norms")
    if before:
        nf.freeze_rest(model, mask)
    freezer = nf.freeze(model, adamw(model), mask)
    with torch.no_grad():
        model.model.norm.weight[3] += 1
    with pytest.raises(FreezeError, match="frozen elements changed"):
        freezer.check()


def test_selective_layers_hold_what_the_mask_names_of_tied_embeddings_too() -> None:
    model = tiny.model("llama")
    mask = mask_for(model).with_rest(*KINDS)
    start = reference.weights(model)
    nf.selective(model, mask, train="unmasked")
    optimizer = adamw(model)
    freezer = nf.freeze(model, optimizer, mask)
    train(model, optimizer)
    freezer.detach()
    nf.merge(model)
    frozen = reference.dense(model, mask)
    whole = {name for name, of_neurons in frozen.items() if of_neurons.all()}
    assert changed(model, start) == set(start) - set(nf.NeuronMap.of(model).rest) - whole
    assert all(torch.equal(p[frozen[name]], start[name][frozen[name]]) for name, p in model.named_parameters())


def test_of_a_fused_projection_other_holds_the_lines_that_are_no_channel_s() -> None:
    model = tiny.model("phi3", tie_word_embeddings=False)
    neuron_map = nf.NeuronMap.of(model, "channel")
    mask = nf.NeuronMask.none(neuron_map).with_rest(*KINDS)
    axis, lines = mask.select(neuron_map)["model.layers.0.self_attn.qkv_proj.weight"]
    assert (axis, lines.tolist()) == (0, list(range(36 + 12))), "queries and keys"
    total = sum(p.numel() for p in model.parameters())
    assert neuron_map.size(mask.select(neuron_map)) == total - neuron_map.elements((~mask).bits)


@pytest.mark.parametrize("kinds", [("embeddings",), ("lm_head", "norms")])
def test_tied_parameters_that_are_to_be_frozen_and_to_train_are_refused(kinds: tuple[str, ...]) -> None:
    model = tiny.model("llama")
    mask = mask_for(model).with_rest(*kinds)
    for use in (
        lambda: nf.freeze_rest(model, mask),
        lambda: nf.freeze(model, adamw(model), mask),
        lambda: nf.selective(model, mask, train="unmasked"),
    ):
        with pytest.raises(ConfigError, match=r"embed_tokens.weight is embeddings and lm_head at once .*; freeze both"):
            use()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "hold",
    [
        lambda model, mask: nf.freeze(model, adamw(model), mask),
        nf.freeze_rest,
        lambda model, mask: nf.selective(model, mask, train="unmasked"),
    ],
    ids=["freeze", "freeze_rest", "selective"],
)
def test_a_head_that_was_untied_from_frozen_embeddings_is_refused(hold: Any) -> None:
    model = tiny.model("llama")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    mask = mask_for(model)
    with pytest.raises(FreezeError, match=r"lm_head\.weight is a parameter of its own, but the config ties it"):
        hold(model, mask.with_rest("embeddings", "lm_head"))
    nf.freeze(model, adamw(model), mask).check()


def test_freezing_everything_is_refused() -> None:
    model = tiny.model("llama")
    mask = (~nf.NeuronMask.none(nf.NeuronMap.of(model))).with_rest(*KINDS)
    with pytest.raises(MaskError, match="freezes everything, so nothing would train"):
        nf.freeze(model, adamw(model), mask)


def test_a_map_made_by_hand_must_say_what_its_rest_is() -> None:
    found = nf.NeuronMap.of(tiny.config("llama"))
    by_hand = nf.NeuronMap(found.model_type, list(found.sites.values()), found.shapes)
    with pytest.raises(ArchitectureError, match="does not say what kind of parameter"):
        by_hand.held(("norms",))


def test_masks_differ_by_what_they_freeze_outside_neurons() -> None:
    mask = mask_for(tiny.model("llama"))
    norms, both = mask.with_rest("norms"), mask.with_rest("lm_head", "norms", "embeddings")
    assert both.config.rest == ("embeddings", "norms", "lm_head")
    assert len({mask, norms, both}) == 3
    assert norms.with_rest() == mask
    assert mask.with_config(fingerprint="1").with_rest("norms").config.fingerprint is None, "it is of fewer elements"
    assert (norms | mask).config.rest == (both & norms).config.rest == ("norms",)
    assert (norms & mask).config.rest == ()
    assert (both - norms).config.rest == ("embeddings", "lm_head")
    assert (~both).config.rest == nf.NeuronMask.random_like(both, 1).config.rest == both.config.rest
    with pytest.raises(MaskError, match=r"field 'rest': found \['routers'\], expected kinds of embeddings, norms"):
        mask.with_rest("routers")


def test_a_mask_s_file_keeps_the_kinds(tmp_path: Path) -> None:
    mask = mask_for(tiny.model("llama")).with_rest("norms", "other")
    mask.save_pretrained(tmp_path)
    assert nf.NeuronMask.from_pretrained(tmp_path) == mask
    assert "norms, other" in (tmp_path / "README.md").read_text()
    path = tmp_path / "neuron_mask_config.json"
    content = json.loads(path.read_text())
    for wrong in (["other", "norms"], ["norms", "norms"], ["wpe"], [3]):
        path.write_text(json.dumps({**content, "rest": wrong}))
        with pytest.raises(MaskError, match="field 'rest'"):
            nf.NeuronMask.from_pretrained(tmp_path)
    del content["rest"]  # of a mask that was made before there was a choice
    path.write_text(json.dumps(content))
    assert nf.NeuronMask.from_pretrained(tmp_path) == mask.with_rest()


def test_going_on_with_other_kinds_is_refused() -> None:
    model = tiny.model("llama")
    mask = mask_for(model).with_rest("norms")
    saved = nf.freeze(model, adamw(model), mask).state_dict()
    freezer = nf.freeze(model, adamw(model), mask.with_rest())
    with pytest.raises(FreezeError, match="resume with the checkpoint's mask"):
        freezer.load_state_dict(saved)
    assert nf.NeuronMask.from_state_dict(saved) == mask


def test_verify_compares_what_the_mask_names(tiny_checkpoint: Path, tmp_path: Path) -> None:
    mask = nf.NeuronMask.random(nf.NeuronMap.of(read_config(tiny_checkpoint)), 0.2, seed=3)
    for file in tiny_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny_checkpoint / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert nf.verify(tiny_checkpoint, tmp_path, mask).ok
    norms = mask.with_rest("norms")
    found = nf.verify(tiny_checkpoint, tmp_path, norms)
    assert (found.ok, found.changed, [check.name for check in found.broken]) == (False, 1, ["model.norm.weight"])
    assert str(found).startswith(f"{found.frozen:,} frozen elements (norms among them): 1 CHANGED in 1 parameters")
    assert found.frozen > nf.verify(tiny_checkpoint, tmp_path, mask).frozen
    assert found.base_fingerprint == weights_fingerprint(tiny_checkpoint, norms)


def test_verify_sees_a_head_that_is_not_tied_to_frozen_embeddings_any_more(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    mask = nf.NeuronMask.random(nf.NeuronMap.of(read_config(tiny_checkpoint)), 0.2, seed=3)
    held = mask.with_rest("embeddings", "lm_head")
    for file in tiny_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny_checkpoint / "model.safetensors")
    assert "lm_head.weight" not in weights
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert nf.verify(tiny_checkpoint, tmp_path, held).ok
    weights["lm_head.weight"][2, 3] += 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert nf.verify(tiny_checkpoint, tmp_path, mask).ok
    found = nf.verify(tiny_checkpoint, tmp_path, held)
    assert (found.ok, found.changed, [check.name for check in found.broken]) == (False, 1, ["lm_head.weight"])
    assert found.base_fingerprint == weights_fingerprint(tiny_checkpoint, held)


def test_the_summary_counts_it() -> None:
    model = tiny.model("llama")
    freezer = nf.freeze(model, adamw(model), mask_for(model).with_rest(*KINDS))
    found = freezer.summary()
    assert found.rest_elements == found.frozen_rest_elements > 0
    assert found.frozen_elements == sum(int(d.sum()) for d in freezer.mask.dense(model).values())
