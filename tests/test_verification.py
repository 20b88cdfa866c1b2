"""Comparing checkpoints bit by bit, from their files."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from neurofreeze import freeze
from neurofreeze.errors import MaskError, ModelError
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.verification import verify, weights_fingerprint
from tests import reference, tiny
from tests.reference import adamw, mask_for

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.0.mlp.up_proj.weight"
KEY_BIAS = "model.layers.1.self_attn.k_proj.bias"
ALL = sum(p.numel() for p in tiny.model("llama").parameters())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bfloat16 model in one file and in several."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = tiny.model("llama", dtype=torch.bfloat16)
    model.save_pretrained(folder / "single")
    model.save_pretrained(folder / "sharded", max_shard_size="10KB")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 3
    return folder


@pytest.fixture
def base(saved: Path) -> Path:
    return saved / "single"


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "tuned"))


@pytest.fixture(scope="module")
def mask() -> NeuronMask:
    return mask_for(tiny.config("llama"))


@pytest.fixture(scope="module")
def frozen(mask: NeuronMask) -> reference.Dense:
    return reference.dense(tiny.model("llama"), mask)


def count(dense: reference.Dense) -> int:
    return sum(int(where.sum()) for where in dense.values())


def rewrite(folder: Path, **changed: torch.Tensor | None) -> None:
    """Save the checkpoint's single file again with these tensors in it, or without those that are None."""
    tensors = load_file(folder / WEIGHTS) | {name.replace("__", "."): value for name, value in changed.items()}
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / WEIGHTS, {"format": "pt"})


def flip_bit(path: Path, name: str, element: int, bit: int, width: int = 2) -> None:
    """Flip one bit of one element where it lies in the file."""
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    start = 8 + length + json.loads(content[8 : 8 + length])[name]["data_offsets"][0]
    content[start + element * width + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def element_of(where: torch.Tensor, chosen: bool, last: bool = False) -> int:
    return int((where.flatten() == chosen).nonzero()[-1 if last else 0])


@pytest.mark.parametrize("first", ["single", "sharded"])
@pytest.mark.parametrize("second", ["single", "sharded"])
def test_the_same_weights_are_intact_however_they_are_stored(
    first: str, second: str, saved: Path, mask: NeuronMask, frozen: reference.Dense
) -> None:
    found = verify(saved / first, saved / second, mask)
    assert found.ok
    assert found.broken == []
    assert (found.frozen, found.changed) == (count(frozen), 0)
    assert (found.trainable, found.trainable_changed) == (ALL - count(frozen), 0)
    assert found.base_fingerprint == found.tuned_fingerprint
    assert found.only_in_one == []


@pytest.mark.parametrize("name", [UP, KEY_BIAS, "model.layers.1.self_attn.o_proj.weight"])
@pytest.mark.parametrize("bit", [0, 8, 15])
def test_one_flipped_bit_of_a_frozen_weight_is_found(
    name: str, bit: int, base: Path, tuned: Path, mask: NeuronMask, frozen: reference.Dense
) -> None:
    flip_bit(tuned / WEIGHTS, name, element_of(frozen[name], True), bit)
    found = verify(base, tuned, mask)
    assert not found.ok
    assert found.changed == 1
    assert [(check.name, check.changed) for check in found.broken] == [(name, 1)]
    assert found.trainable_changed == 0
    assert found.base_fingerprint != found.tuned_fingerprint


def test_one_flipped_bit_in_a_shard_is_found(
    saved: Path, tmp_path: Path, mask: NeuronMask, frozen: reference.Dense
) -> None:
    tuned = Path(shutil.copytree(saved / "sharded", tmp_path / "tuned"))
    shard = json.loads((tuned / INDEX).read_text())["weight_map"][UP]
    flip_bit(tuned / shard, UP, element_of(frozen[UP], True, last=True), 3)
    assert [check.name for check in verify(saved / "single", tuned, mask).broken] == [UP]


def test_changes_of_trainable_weights_are_counted_and_are_fine(
    base: Path, tuned: Path, mask: NeuronMask, frozen: reference.Dense
) -> None:
    for element in range(3):
        flip_bit(tuned / WEIGHTS, "model.embed_tokens.weight", element, 0)
    flip_bit(tuned / WEIGHTS, UP, element_of(frozen[UP], False), 15)
    found = verify(base, tuned, mask)
    assert found.ok
    assert found.trainable_changed == 4
    assert {check.name: check.trainable_changed for check in found.parameters if check.trainable_changed} == {
        "model.embed_tokens.weight": 3,
        UP: 1,
    }
    assert found.base_fingerprint == found.tuned_fingerprint


def test_every_element_changed_is_counted_once(base: Path, tmp_path: Path, mask: NeuronMask, frozen: Any) -> None:
    tiny.model("llama", seed=5, dtype=torch.bfloat16).save_pretrained(tmp_path)
    theirs = load_file(tmp_path / WEIGHTS)
    differs = {name: reference.bits(t) != reference.bits(theirs[name]) for name, t in load_file(base / WEIGHTS).items()}
    found = verify(base, tmp_path, mask)
    assert found.changed == sum(int(d[frozen[name]].sum()) for name, d in differs.items())
    assert found.changed + found.trainable_changed == sum(int(d.sum()) for d in differs.values())


def test_minus_zero_is_a_change(
    base: Path, tuned: Path, mask: NeuronMask, frozen: reference.Dense, tmp_path: Path
) -> None:
    zeros = torch.zeros(70, 36, dtype=torch.bfloat16)
    zeroed = Path(shutil.copytree(base, tmp_path / "zeroed"))
    rewrite(zeroed, **{UP: zeros})
    rewrite(tuned, **{UP: -zeros})
    assert verify(zeroed, tuned, mask).changed == int(frozen[UP].sum())


def test_a_checkpoint_widened_to_float32_is_intact(base: Path, tuned: Path, mask: NeuronMask) -> None:
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(tuned)
    assert load_file(tuned / WEIGHTS)[UP].dtype == torch.float32
    found = verify(base, tuned, mask)
    assert found.ok
    assert found.trainable_changed == 0
    assert found.base_fingerprint == found.tuned_fingerprint


def test_a_checkpoint_narrowed_from_float32_is_changed(tmp_path: Path, mask: NeuronMask, frozen: Any) -> None:
    wide = tiny.model("llama", dtype=torch.float32)
    wide.save_pretrained(tmp_path / "wide")
    lost = {name: p != p.bfloat16().float() for name, p in wide.named_parameters()}
    wide.bfloat16().save_pretrained(tmp_path / "narrow")
    found = verify(tmp_path / "wide", tmp_path / "narrow", mask)
    assert not found.ok
    assert found.changed == sum(int(where[frozen[name]].sum()) for name, where in lost.items())


def test_training_under_the_freezer_is_verified(base: Path, tmp_path: Path, mask: NeuronMask) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask)
    reference.train(model, optimizer, reference.batches(3))
    model.save_pretrained(tmp_path)
    found = verify(base, tmp_path, mask)
    assert found.ok
    assert found.trainable_changed > 0.9 * found.trainable
    assert found.tuned_fingerprint == freezer.fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_fingerprint_is_that_of_the_freezer_on_the_loaded_model(
    saved: Path, mask: NeuronMask, dtype: torch.dtype
) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved / "single", dtype=dtype)
    expected = freeze(model, adamw(model), mask).fingerprint
    assert weights_fingerprint(saved / "single", mask) == expected
    assert weights_fingerprint(saved / "sharded", mask) == expected
    assert verify(saved / "single", saved / "sharded", mask).base_fingerprint == expected


def test_the_mask_may_be_a_folder(base: Path, tuned: Path, mask: NeuronMask, tmp_path: Path) -> None:
    found = verify(str(base), str(tuned), mask.save_pretrained(tmp_path / "mask"))
    assert found.ok
    assert found.mask == mask.digest


def test_progress_is_told_once_per_parameter(base: Path, tuned: Path, mask: NeuronMask) -> None:
    calls: list[None] = []
    found = verify(base, tuned, mask, lambda: calls.append(None))
    assert len(calls) == len(found.parameters) == len(load_file(base / WEIGHTS))


def test_parameters_of_one_checkpoint_only_are_named(base: Path, tuned: Path, mask: NeuronMask) -> None:
    rewrite(tuned, model__norm__weight=None, value_head=torch.ones(3))
    found = verify(base, tuned, mask)
    assert found.ok
    assert found.only_in_one == ["model.norm.weight", "value_head"]


def test_verification_json_holds_every_count_and_digest(
    base: Path, tuned: Path, mask: NeuronMask, frozen: reference.Dense, tmp_path: Path
) -> None:
    flip_bit(tuned / WEIGHTS, UP, element_of(frozen[UP], True), 7)
    found = verify(base, tuned, mask)
    found.save(tmp_path / "deep" / "verification.json")
    content = json.loads((tmp_path / "deep" / "verification.json").read_text())
    assert content["ok"] is False
    assert (content["base"], content["tuned"], content["mask"]) == (str(base), str(tuned), mask.digest)
    assert (content["frozen"], content["changed"]) == (count(frozen), 1)
    assert (content["trainable"], content["trainable_changed"]) == (ALL - count(frozen), 0)
    assert content["base_fingerprint"] == weights_fingerprint(base, mask)
    assert content["tuned_fingerprint"] == weights_fingerprint(tuned, mask)
    assert content["only_in_one"] == []
    parameters = {check["name"]: check for check in content["parameters"]}
    assert set(parameters) == set(frozen)
    for name, check in parameters.items():
        assert check["shape"] == list(frozen[name].shape)
        assert check["frozen"] == int(frozen[name].sum())
        assert check["trainable"] == int((~frozen[name]).sum())
        assert check["changed"] == (name == UP)
        assert (check["base_digest"] != check["tuned_digest"]) == (name == UP)
        assert (check["base_digest"] == "") == (not frozen[name].any())


def test_the_outcome_in_one_line(base: Path, tuned: Path, mask: NeuronMask, frozen: reference.Dense) -> None:
    n, rest = count(frozen), ALL - count(frozen)
    intact = f"{n:,} frozen elements: intact; 0 of {rest:,} trainable elements changed"
    assert str(verify(base, tuned, mask)) == intact
    flip_bit(tuned / WEIGHTS, UP, element_of(frozen[UP], True), 7)
    broken = f"{n:,} frozen elements: 1 CHANGED in 1 parameters; 0 of {rest:,} trainable elements changed"
    assert str(verify(base, tuned, mask)) == broken


# Refusals


def test_a_mask_that_chooses_nothing_is_refused(base: Path, tuned: Path) -> None:
    with pytest.raises(MaskError, match="chooses no neuron, so there is nothing to verify"):
        verify(base, tuned, NeuronMask.none(NeuronMap.of(tiny.config("llama"))))


def test_a_mask_for_another_model_is_refused(base: Path, tuned: Path) -> None:
    with pytest.raises(MaskError, match=r"field 'neurons\.layers\.0\.mlp': the mask has 71, the model has 70"):
        verify(base, tuned, mask_for(tiny.config("llama", intermediate_size=71)))


@pytest.mark.parametrize("broken", ["base", "tuned"])
def test_a_masked_parameter_that_is_missing_is_refused_by_name(
    broken: str, base: Path, tuned: Path, mask: NeuronMask
) -> None:
    rewrite(tuned, **{UP: None})
    folders = (tuned, base) if broken == "base" else (base, tuned)
    with pytest.raises(ModelError, match=rf"tuned has no parameter {UP}, which the mask freezes"):
        verify(*folders, mask)
    with pytest.raises(ModelError, match=f"no parameter {UP}"):
        weights_fingerprint(tuned, mask)


def test_another_shape_of_a_masked_parameter_is_refused_by_name(base: Path, tuned: Path, mask: NeuronMask) -> None:
    # A larger one, where every frozen row could be found: the rows would be those of other neurons.
    rewrite(tuned, **{UP: torch.zeros(71, 36)})
    for folders in [(base, tuned), (tuned, base), (tuned, tuned)]:
        with pytest.raises(ModelError, match=rf"{UP} has shape \(71, 36\) in .*tuned, expected \(70, 36\)"):
            verify(*folders, mask)
    with pytest.raises(ModelError, match=rf"{UP} has shape \(71, 36\)"):
        weights_fingerprint(tuned, mask)


def test_another_shape_of_any_parameter_is_refused_by_name(base: Path, tuned: Path, mask: NeuronMask) -> None:
    rewrite(tuned, model__norm__weight=torch.zeros(35))
    with pytest.raises(ModelError, match=r"norm\.weight has shape \(36,\) in one checkpoint and \(35,\) in the other"):
        verify(base, tuned, mask)


def test_a_base_that_is_not_the_one_the_mask_was_made_on_is_refused(base: Path, tuned: Path, mask: NeuronMask) -> None:
    made_on = mask.with_config(fingerprint=weights_fingerprint(base, mask))
    assert verify(base, tuned, made_on).ok
    rewrite(base := tuned, **{UP.replace(".", "__"): load_file(tuned / WEIGHTS)[UP] + 1})
    with pytest.raises(MaskError, match="field 'fingerprint': the mask was made on weights with"):
        verify(base, tuned, made_on)
    assert verify(base, tuned, mask).ok


def test_a_folder_with_an_adapter_is_refused(base: Path, tuned: Path, mask: NeuronMask) -> None:
    (tuned / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tuned has an adapter_config\.json: .* Merge the adapter"):
        verify(base, tuned, mask)


def test_a_head_that_is_neither_tied_any_more_nor_there_is_refused(base: Path, tuned: Path, mask: NeuronMask) -> None:
    with_head = mask.with_rest("embeddings", "lm_head")
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert verify(base, tuned, mask).ok
    with pytest.raises(ModelError, match=r"no lm_head\.weight, which the base ties to model\.embed_tokens\.weight"):
        verify(base, tuned, with_head)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": 1}, "describes a llama model of 76 neurons, that of the base a llama model of 152"),
        ({"model_type": "mistral"}, "describes a mistral model"),
        ({"transformers_weights": "other.safetensors"}, r"has transformers load other\.safetensors"),
    ],
)
def test_a_config_with_which_something_else_is_loaded_is_refused(
    changed: dict[str, Any], message: str, base: Path, tuned: Path, mask: NeuronMask
) -> None:
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(ModelError, match=message):
        verify(base, tuned, mask)


def test_a_base_without_config_is_refused(tuned: Path, mask: NeuronMask) -> None:
    (tuned / "config.json").unlink()
    for check in (lambda: verify(tuned, tuned, mask), lambda: weights_fingerprint(tuned, mask)):
        with pytest.raises(ModelError, match=r"no config\.json in"):
            check()


def test_a_checkpoint_without_weights_is_refused(base: Path, tuned: Path, mask: NeuronMask) -> None:
    (tuned / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=rf"no {WEIGHTS} or {INDEX} in"):
        verify(base, tuned, mask)


def test_a_file_cut_short_is_refused(base: Path, tuned: Path, mask: NeuronMask) -> None:
    (tuned / WEIGHTS).write_bytes((tuned / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        verify(base, tuned, mask)


@pytest.fixture
def sharded(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "sharded", tmp_path / "sharded"))


def test_a_missing_shard_is_refused_by_name(base: Path, sharded: Path, mask: NeuronMask) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"sharded lacks {shard.name}, which its index names"):
        verify(base, sharded, mask)


def test_a_tensor_in_two_files_is_refused_by_name(base: Path, sharded: Path, mask: NeuronMask) -> None:
    first, *_, last = sorted(sharded.glob("*.safetensors"))
    tensors = load_file(last)
    name = next(iter(load_file(first)))
    save_file({**tensors, name: load_file(first)[name]}, last, {"format": "pt"})
    with pytest.raises(ModelError, match=f"{last.name} has {name}, which another file"):
        verify(base, sharded, mask)


@pytest.mark.parametrize("name", ["../single/model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_that_leaves_its_folder_is_refused(name: str, base: Path, sharded: Path, mask: NeuronMask) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][UP] = name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=f"{INDEX} names files outside its folder"):
        verify(base, sharded, mask)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(content: str, base: Path, sharded: Path, mask: NeuronMask) -> None:
    (sharded / INDEX).write_text(content)
    with pytest.raises(ModelError, match=f"{INDEX} is not a safetensors index"):
        verify(base, sharded, mask)
