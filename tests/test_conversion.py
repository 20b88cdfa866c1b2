"""Checkpoints as save_pretrained writes them, experts one by one, under the names and shapes of the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from neurofreeze import freeze
from neurofreeze.checkpoints import Weights, open_parameters
from neurofreeze.cli import main
from neurofreeze.errors import ModelError
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.verification import verify, weights_fingerprint
from tests import reference, tiny
from tests.reference import adamw, mask_for
from tests.test_architectures import CASES
from tests.test_verification import WEIGHTS, flip_bit, rewrite

EXPERTS = ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"]
# Where the up projection of expert 1 in layer 1 is written, and its element [row 3, column 2].
UP = {
    "mixtral": ("model.layers.1.block_sparse_moe.experts.1.w3.weight", 3 * 36 + 2),
    "qwen3_moe": ("model.layers.1.mlp.experts.1.up_proj.weight", 3 * 36 + 2),
    "deepseek_v3": ("model.layers.1.mlp.experts.1.up_proj.weight", 3 * 36 + 2),
    "gpt_oss": ("model.layers.1.mlp.experts.gate_up_proj", 36 * 20 + 2 * 20 + 7),
}
STACK = "model.layers.1.mlp.experts.gate_up_proj"


def saved(folder: Path, architecture: str, seed: int = 0, **options: Any) -> Path:
    tiny.model(architecture, seed, torch.bfloat16).save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize("architecture", CASES)
def test_every_parameter_has_the_model_s_name_and_values(architecture: str, tmp_path: Path) -> None:
    model = tiny.model(architecture, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    with open_parameters(tmp_path, tiny.config(architecture)) as weights:
        assert set(weights) == {name for name, _ in model.named_parameters()} | {
            name for name in weights if name in dict(model.named_buffers())
        }
        for name, parameter in model.named_parameters():
            assert weights.shape(name) == tuple(parameter.shape)
            assert torch.equal(reference.bits(weights[name]), reference.bits(parameter)), name


@pytest.mark.parametrize("shards", ["5GB", "10KB"])
@pytest.mark.parametrize("architecture", EXPERTS)
def test_the_fingerprint_is_that_of_the_freezer_on_the_loaded_model(
    architecture: str, shards: str, tmp_path: Path
) -> None:
    saved(tmp_path, architecture, max_shard_size=shards)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    mask = mask_for(model)
    expected = freeze(model, adamw(model), mask).fingerprint
    assert weights_fingerprint(tmp_path, mask) == expected
    found = verify(tmp_path, tmp_path, mask)
    assert (found.base_fingerprint, found.changed) == (expected, 0)
    assert found.frozen == sum(int(where.sum()) for where in reference.dense(model, mask).values())
    assert found.only_in_one == []


@pytest.mark.parametrize("architecture", EXPERTS)
def test_one_flipped_bit_of_an_expert_s_frozen_neuron_is_found(architecture: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", architecture)
    tuned = Path(shutil.copytree(base, tmp_path / "tuned"))
    none = NeuronMask.none(NeuronMap.of(tiny.config(architecture)))
    for neuron, found in ((13, 1), (12, 0)):  # expert 1's neuron 3 is what is flipped
        only = {**none.bits, "layers.1.mlp.experts": np.arange(50) == neuron}
        chosen = NeuronMask(only, none.config).save_pretrained(tmp_path / f"mask-{neuron}")
        arguments = ["verify", f"base={base}", f"tuned={tuned}", f"mask={chosen}"]
        shutil.copy(base / WEIGHTS, tuned / WEIGHTS)
        assert main(arguments) == 0
        flip_bit(tuned / WEIGHTS, *UP[architecture], bit=0)
        assert main(arguments) == found
        content = json.loads((tuned / "verification.json").read_text())
        assert (content["changed"], content["trainable_changed"]) == (found, 1 - found)
        assert [check["name"] for check in content["parameters"] if check["changed"]] == [STACK] * found


@pytest.mark.parametrize("architecture", EXPERTS)
def test_training_under_the_freezer_is_verified(architecture: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", architecture)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, experts_implementation="eager")
    optimizer, mask = adamw(model), mask_for(model)
    freezer = freeze(model, optimizer, mask)
    reference.train(model, optimizer, reference.batches(2))
    model.save_pretrained(tmp_path / "tuned")
    found = verify(base, tmp_path / "tuned", mask)
    assert found.ok
    assert found.trainable_changed > 0.5 * found.trainable
    assert found.tuned_fingerprint == freezer.fingerprint


def test_experts_in_stacks_and_one_by_one_are_the_same(tmp_path: Path) -> None:
    model = tiny.model("mixtral", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "one-by-one")
    model.save_pretrained(tmp_path / "stacks", save_original_format=False)
    assert STACK in load_file(tmp_path / "stacks" / WEIGHTS)
    found = verify(tmp_path / "one-by-one", tmp_path / "stacks", mask_for(model))
    assert (found.changed, found.trainable_changed, found.only_in_one) == (0, 0, [])


def test_a_checkpoint_of_the_decoder_alone_has_the_model_s_names(tmp_path: Path) -> None:
    model = tiny.model("mixtral", dtype=torch.bfloat16)
    saved(tmp_path / "whole", "mixtral")
    model.model.save_pretrained(tmp_path / "decoder")
    found = verify(tmp_path / "whole", tmp_path / "decoder", mask_for(model))
    assert (found.changed, found.only_in_one) == (0, ["lm_head.weight"])


def test_a_stack_is_read_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    get = Weights.__getitem__
    monkeypatch.setattr(Weights, "__getitem__", lambda self, name: read.append(name) or get(self, name))
    with open_parameters(saved(tmp_path, "mixtral"), tiny.config("mixtral")) as weights:
        assert weights.shape(STACK) == (5, 20, 36)
        assert STACK in weights
        assert read == []
        weights[STACK]
        assert sorted(read) == [f"{UP['mixtral'][0][:-11]}{e}.w{w}.weight" for e in range(5) for w in (1, 3)]


# Refusals

W1, W2, W3 = (f"model.layers.1.block_sparse_moe.experts.{{}}.w{w}.weight" for w in (1, 2, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({W3.format(2): None}, r"has experts\.\*\.w3\.weight with the numbers \[0, 1, 3, 4\] for .*1.mlp.experts"),
        ({W3.format(2): None, W3.format(7): W3.format(2)}, r"w3\.weight with the numbers \[0, 1, 3, 4, 7\]"),
        ({W3.format(e): None for e in range(5)}, r"w3\.weight with the numbers \[\] for"),
        ({W1.format(2): "model.norm.weight"}, r"w1\.weight with the shapes \[\(10, 36\), \(36,\)\]"),
        ({STACK: W1.format(0)}, f"two tensors for the parameter {STACK}"),
        (
            {"model.layers.1.mlp.gate.weight": "model.layers.1.block_sparse_moe.gate.weight"},
            r"two tensors for the parameter model\.layers\.1\.mlp\.gate\.weight",
        ),
    ],
)
def test_a_stack_that_cannot_be_told_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "mixtral")
    tuned = Path(shutil.copytree(base, tmp_path / "tuned"))
    tensors = load_file(base / WEIGHTS)
    rewrite(tuned, **{name: tensors[other].clone() if other else None for name, other in changes.items()})
    mask = mask_for(tiny.config("mixtral"))
    for check in (lambda: verify(base, tuned, mask), lambda: weights_fingerprint(tuned, mask)):
        with pytest.raises(ModelError, match=rf"tuned has .*{message}|tuned {message}"):
            check()


def test_an_expert_too_few_is_refused(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "mixtral")
    tuned = Path(shutil.copytree(base, tmp_path / "tuned"))
    left = {name: t for name, t in load_file(base / WEIGHTS).items() if "1.block_sparse_moe.experts.4." not in name}
    save_file(left, tuned / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{STACK} has shape \(4, 20, 36\) in .*tuned, expected \(5, 20, 36\)"):
        verify(base, tuned, mask_for(tiny.config("mixtral")))
