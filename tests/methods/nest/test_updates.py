"""Update vectors against dense weights trained with their rows tied by hand, in float64; folding, saving, resuming."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from neurofreeze.errors import FreezeError, ModelError
from neurofreeze.methods.nest import attach, fold
from neurofreeze.methods.nest.choice import Rows, Updates
from neurofreeze.methods.nest.updates import Updated
from neurofreeze.neurons import NeuronMap
from tests import reference, tiny
from tests.reference import bits

STEPS = 3
OPTIONS: dict[str, Any] = {"lr": 0.05, "eps": 1e-3}


def rows(*pairs: tuple[int, int]) -> Rows:
    return Rows(*(np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True)))


UPDATES = {
    "llama": Updates(
        {
            "model.layers.0.mlp.gate_proj.weight": rows((3, 0), (5, 1), (7, 0), (60, 0), (69, 1)),
            "model.layers.0.mlp.up_proj.weight": rows((5, 0)),
            "model.layers.1.mlp.up_proj.weight": rows((0, 1), (9, 0), (10, 2)),
        }
    ),
    "phi3": Updates({"model.layers.1.mlp.gate_up_proj.weight": rows((4, 0), (9, 0), (72, 1), (139, 1))}),
}


def vectors(model: Any) -> dict[str, torch.Tensor]:
    """Weight -> its vectors."""
    return {n.replace("weight_updates", "weight"): p for n, p in model.named_parameters() if "weight_updates" in n}


def randomized(model: Any, scale: float = 0.1) -> Any:
    with torch.no_grad():
        for vector in vectors(model).values():
            vector.normal_(0, scale)
    return model


def train(model: Any, steps: int = STEPS, seed: int = 0) -> list[torch.Tensor]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.1, **OPTIONS)
    return reference.train(model, optimizer, reference.batches(steps, seed=seed))


def train_by_hand(model: Any, updates: Updates) -> dict[str, torch.Tensor]:
    """Every gradient formed, those of a vector's rows added up, AdamW on the sums, the vectors added to the start."""
    start = {name: model.get_parameter(name).detach().clone() for name in updates.by_weight}
    found = {name: torch.zeros(own.count, start[name].shape[1]).double() for name, own in updates.by_weight.items()}
    optimizer = torch.optim.AdamW(list(found.values()), weight_decay=0.1, **OPTIONS)
    for micro_batches in reference.batches(STEPS):
        reference.backward(model, micro_batches)
        for name, own in updates.by_weight.items():
            gradient = model.get_parameter(name).grad
            found[name].grad = torch.zeros_like(found[name])
            for row, vector in zip(own.rows.tolist(), own.vectors.tolist(), strict=True):
                found[name].grad[vector] += gradient[row]
        torch.nn.utils.clip_grad_norm_(list(found.values()), 0.5)
        optimizer.step()
        model.zero_grad()
        with torch.no_grad():
            for name, own in updates.by_weight.items():
                for row, vector in zip(own.rows.tolist(), own.vectors.tolist(), strict=True):
                    model.get_parameter(name)[row] = start[name][row] + found[name][vector]
    return found


@pytest.mark.parametrize("architecture", UPDATES)
def test_training_equals_tied_rows_of_a_dense_model(architecture: str) -> None:
    model, by_hand = tiny.model(architecture), tiny.model(architecture)
    start = reference.weights(model)
    expected = train_by_hand(by_hand, UPDATES[architecture])
    train(attach(model, UPDATES[architecture]))
    found = vectors(model)
    assert found.keys() == expected.keys()
    for name, vector in found.items():
        torch.testing.assert_close(vector.detach(), expected[name], rtol=1e-9, atol=1e-12)
        assert vector.detach().abs().min() > 0
    for name, p in fold(model).named_parameters():
        torch.testing.assert_close(p, by_hand.get_parameter(name), rtol=1e-9, atol=1e-12)
        changed = (bits(p) != bits(start[name])).any(-1)
        own = UPDATES[architecture].by_weight.get(name)
        assert changed.nonzero()[:, 0].tolist() == ([] if own is None else own.rows.tolist()) if p.dim() > 1 else True
        assert own is not None or torch.equal(bits(p), bits(start[name])), name


def test_only_vectors_have_gradients() -> None:
    model = attach(tiny.model(), UPDATES["llama"])
    reference.backward(model, reference.batches(1)[0])
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_gradient == [n for n, p in model.named_parameters() if p.requires_grad]
    assert [name.rpartition(".")[2] for name in with_gradient] == ["weight_updates"] * 3
    shapes = {name: tuple(vector.shape) for name, vector in vectors(model).items()}
    assert shapes == {name: (own.count, 36) for name, own in UPDATES["llama"].by_weight.items()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == UPDATES["llama"].parameters(NeuronMap.of(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attaching_changes_no_output(dtype: torch.dtype) -> None:
    model = tiny.model(dtype=dtype)
    ids = reference.batches(1)[0][0]
    before = model(input_ids=ids).logits
    assert torch.equal(attach(model, UPDATES["llama"])(input_ids=ids).logits, before)


@pytest.mark.parametrize("architecture", UPDATES)
def test_folding_changes_no_output(architecture: str) -> None:
    model = randomized(attach(tiny.model(architecture), UPDATES[architecture]))
    ids = reference.batches(1)[0][0]
    before = model(input_ids=ids).logits
    assert not torch.equal(before, tiny.model(architecture)(input_ids=ids).logits)
    torch.testing.assert_close(fold(model)(input_ids=ids).logits, before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_float32_sum_rounded_once_and_nothing_else_moves(dtype: torch.dtype) -> None:
    model = tiny.model(dtype=dtype)
    start = reference.weights(model)
    randomized(attach(model, UPDATES["llama"]))
    found = {name: vector.detach().clone() for name, vector in vectors(model).items()}
    assert {vector.dtype for vector in found.values()} == {torch.float32}
    fold(model)
    for name, p in model.named_parameters():
        expected = start[name].clone()
        if name in found:
            own = UPDATES["llama"].by_weight[name]
            for row, vector in zip(own.rows.tolist(), own.vectors.tolist(), strict=True):
                expected[row] = (start[name][row].float() + found[name][vector]).to(dtype)
        assert torch.equal(bits(p), bits(expected)), name


def test_a_folded_model_is_an_ordinary_one() -> None:
    model, ordinary = tiny.model(), tiny.model()
    for each in (model, ordinary):
        each.model.norm.weight.requires_grad_(False)
    fold(randomized(attach(model, UPDATES["llama"])))
    assert [type(m) for m in model.modules()] == [type(m) for m in ordinary.modules()]
    assert list(model.state_dict()) == list(ordinary.state_dict())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in ordinary.named_parameters()
    }
    assert model.__dict__.keys() == ordinary.__dict__.keys()
    for mine, other in zip(model.modules(), ordinary.modules(), strict=True):
        assert mine._buffers.keys() == other._buffers.keys()
        assert mine._non_persistent_buffers_set == other._non_persistent_buffers_set
    fold(randomized(attach(model, UPDATES["llama"])))  # and again


def test_what_is_saved_meanwhile_is_the_updated_model(tmp_path: Path) -> None:
    model = randomized(attach(tiny.model(dtype=torch.float32), UPDATES["llama"]))
    model.save_pretrained(tmp_path / "meanwhile")
    fold(model).save_pretrained(tmp_path / "folded")
    for folder in ("meanwhile", "folded"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        reference.assert_same(loaded, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_from_a_state_dict_to_the_same_bits(dtype: torch.dtype) -> None:
    model = attach(tiny.model(dtype=dtype), UPDATES["llama"])
    train(model)
    saved = copy.deepcopy(model.state_dict())
    other = attach(tiny.model(dtype=dtype), UPDATES["llama"])
    other.load_state_dict(saved)
    reference.assert_same(other, model)
    assert vectors(model)["model.layers.0.mlp.gate_proj.weight"].abs().min() > 0
    for each in (model, other):
        train(each, seed=1)
    reference.assert_same(fold(other), fold(model))


def test_a_state_dict_of_another_base_is_refused() -> None:
    saved = randomized(attach(tiny.model(), UPDATES["llama"])).state_dict()
    with pytest.raises(FreezeError, match="trained on another model"):
        attach(tiny.model(seed=1), UPDATES["llama"]).load_state_dict(saved)


def test_autocast_trains_about_as_float32_does() -> None:
    plain, mixed = (attach(tiny.model(dtype=torch.float32), UPDATES["llama"]) for _ in range(2))
    ids = reference.batches(1)[0][0]
    plain(input_ids=ids, labels=ids).loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = mixed(input_ids=ids, labels=ids).loss
    loss.backward()
    for name, vector in vectors(mixed).items():
        expected = vectors(plain)[name].grad
        assert vector.grad.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(vector.grad.flatten(), expected.flatten(), 0) > 0.98, name


def test_gradient_checkpointing_changes_nothing() -> None:
    models = [attach(tiny.model(), UPDATES["llama"]).train() for _ in range(2)]
    models[1].gradient_checkpointing_enable({"use_reentrant": False})
    for model in models:
        train(model)
    for name, vector in vectors(models[1]).items():
        torch.testing.assert_close(vector, vectors(models[0])[name], rtol=1e-10, atol=1e-13)


def test_what_cannot_be_updated_is_refused_and_left_alone() -> None:
    with pytest.raises(FreezeError, match="no update vectors"):
        fold(tiny.model())
    with pytest.raises(FreezeError, match="already"):
        attach(attach(tiny.model(), UPDATES["llama"]), UPDATES["llama"])
    with pytest.raises(ModelError, match="belong to another one"):
        attach(tiny.model("gpt2"), UPDATES["llama"])
    wrapped = torch.nn.Module()
    wrapped.module, wrapped.config = tiny.model(), tiny.config()
    with pytest.raises(FreezeError, match="not wrapped yet"):
        attach(wrapped, UPDATES["llama"])

    class Quantized(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).round()

    model = tiny.model()
    model.model.layers[1].mlp.up_proj.__class__ = Quantized
    with pytest.raises(FreezeError, match="in a Quantized"):
        attach(model, UPDATES["llama"])
    assert not any(isinstance(module, Updated) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_sharded_weights_are_refused_before_a_wrong_result() -> None:
    model = attach(tiny.model(), UPDATES["llama"])
    model.model.layers[0].mlp.up_proj.weight.ds_id = 7  # as ZeRO-3 marks what it partitions
    ids = reference.batches(1)[0][0]
    for use in (lambda: model(input_ids=ids), model.state_dict, lambda: fold(model)):
        with pytest.raises(FreezeError, match="one process or under DDP"):
            use()
