"""What step() and check() notice when something else touches frozen elements, and detaching."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from neurofreeze import freeze, freeze_rest
from neurofreeze.errors import FreezeError
from neurofreeze.mask import NeuronMask
from tests import reference, tiny
from tests.reference import adamw, assert_frozen, assert_no_moments, assert_same, mask_for


def first_frozen(model: Any, mask: NeuronMask, name: str = "model.layers.0.mlp.up_proj.weight") -> tuple[Any, Any]:
    """A parameter and the place of its first frozen element."""
    place = tuple(reference.dense(model, mask)[name].nonzero()[0].tolist())
    return dict(model.named_parameters())[name], place


@pytest.mark.parametrize("value", ["one ulp", "minus", "NaN"])
def test_check_notices_a_frozen_weight_written_outside_a_step(value: str) -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    freezer = freeze(model, adamw(model), mask)
    p, place = first_frozen(model, mask)
    assert freezer.check() == freezer.fingerprint
    with torch.no_grad():
        if value == "one ulp":
            p[place] = torch.nextafter(p[place], torch.tensor(torch.inf, dtype=torch.float64))
        else:
            p[place] = -p[place] if value == "minus" else torch.nan
    with pytest.raises(FreezeError, match="frozen elements changed: their fingerprint is"):
        freezer.check()


def test_check_lets_trainable_weights_be_written() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    freezer = freeze(model, adamw(model), mask)
    frozen = reference.dense(model, mask)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p[~frozen[name]] += 1
    assert freezer.check() == freezer.fingerprint


def test_check_notices_a_parameter_that_was_replaced() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    freezer = freeze(model, adamw(model), mask)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    with pytest.raises(FreezeError, match=r"up_proj\.weight"):
        freezer.check()


def test_check_notices_a_parameter_replaced_in_model_and_optimizer() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    optimizer.add_param_group({"params": [layer.weight]})
    with pytest.raises(FreezeError, match=r"up_proj\.weight was replaced by another parameter"):
        freezer.check()


def test_check_notices_embeddings_that_were_resized_in_place() -> None:
    model = tiny.model("llama")
    freezer = freeze(model, adamw(model), mask_for(model).with_rest("embeddings", "lm_head"))
    model.resize_token_embeddings(70, mean_resizing=False)
    with pytest.raises(
        FreezeError, match=r"embed_tokens\.weight was replaced .* of shape \(70, 36\), it had \(64, 36\)"
    ):
        freezer.check()


def test_check_notices_a_bias_that_a_frozen_layer_was_given() -> None:
    model = tiny.model("mistral")
    freezer = freeze(model, adamw(model), mask_for(model))
    freezer.check()
    layer = model.model.layers[0].mlp.up_proj
    layer.bias = nn.Parameter(torch.ones(layer.out_features))
    with pytest.raises(FreezeError, match=r"up_proj\.bias came into the model after freezing began"):
        freezer.check()


def test_a_gradient_where_there_was_to_be_none_is_refused_at_the_step() -> None:
    model = tiny.model("llama")
    mask = mask_for(model).with_rest("norms")
    freeze_rest(model, mask)
    optimizer = adamw(model)
    freeze(model, optimizer, mask)
    reference.train(model, optimizer, reference.batches(1))
    model.requires_grad_(True)
    start = reference.weights(model)
    with pytest.raises(FreezeError, match=r"norm\.weight had requires_grad off when freezing began"):
        reference.train(model, optimizer, reference.batches(1))
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())


def test_check_notices_moments_that_came_back() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    optimizer = adamw(model)
    reference.train(model, optimizer, reference.batches(1))
    state = copy.deepcopy(optimizer.state_dict())
    freezer = freeze(model, optimizer, mask)
    optimizer.load_state_dict(state)
    with pytest.raises(FreezeError, match="optimizer state of frozen elements is not zero"):
        freezer.check()
    freezer.sync()
    freezer.check()


def assign_gradients(model: Any) -> None:
    """As code does that gathers or privatises gradients itself: no hook of autograd fires."""
    for p in model.parameters():
        p.grad = torch.ones_like(p)


def test_gradients_assigned_by_hand_are_refused_at_the_step() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    optimizer = adamw(model)
    start = reference.weights(model)
    freeze(model, optimizer, mask)
    assign_gradients(model)
    with pytest.raises(FreezeError, match=r"the gradient of frozen elements is not zero.*mask_gradients"):
        optimizer.step()
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())


def test_a_gradient_norm_that_is_not_finite_is_told_as_that() -> None:
    model = tiny.model("llama")
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask_for(model))
    (model(torch.arange(6)[None]).logits.sum() * float("nan")).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with pytest.raises(FreezeError, match=r"optimizer state of frozen elements is not finite.* training has diverged"):
        freezer.check()


def test_gradients_assigned_by_hand_are_refused_at_later_steps_too() -> None:
    model = tiny.model("llama")
    optimizer = adamw(model)
    freeze(model, optimizer, mask_for(model))
    reference.train(model, optimizer, reference.batches(2))
    assign_gradients(model)
    with pytest.raises(FreezeError, match="the gradient of frozen elements is not zero"):
        optimizer.step()


def test_gradients_assigned_by_hand_after_a_backward_pass_are_noticed() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask)
    reference.backward(model, reference.batches(1)[0])
    assign_gradients(model)
    optimizer.step()
    with pytest.raises(FreezeError, match="optimizer state of frozen elements is not zero"):
        freezer.check()


def test_mask_gradients_makes_gradients_assigned_by_hand_good() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    optimizer = adamw(model)
    frozen, start = reference.dense(model, mask), reference.weights(model)
    freezer = freeze(model, optimizer, mask)
    for _ in range(3):
        assign_gradients(model)
        freezer.mask_gradients()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert norm == pytest.approx(sum(int((~where).sum()) for where in frozen.values()) ** 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert_frozen(model, start, frozen)
    assert_no_moments(model, optimizer, frozen)
    freezer.check()


def test_parameters_that_are_not_in_the_graph_stop_nothing() -> None:
    model = tiny.model("llama")
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask_for(model))
    model.model.embed_tokens(torch.tensor([3])).sum().backward()  # no frozen parameter gets a gradient
    optimizer.step()
    freezer.check()


def half_a_step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """A step that is interrupted once it has moved some weights."""
    reference.backward(model, reference.batches(1)[0])
    before, moved = reference.weights(model), 0

    def interrupt(exp_avg: torch.Tensor, *args: Any) -> torch.Tensor:
        nonlocal moved
        moved += 1
        if moved == 15:
            raise KeyboardInterrupt
        return lerp(exp_avg, *args)

    lerp = torch.Tensor.lerp_
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "lerp_", interrupt)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(AssertionError):
        assert_frozen(model, before, reference.dense(model, mask_for(model)))


def slow_adamw(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1, foreach=False)


def test_training_goes_on_after_half_a_step() -> None:
    model = tiny.model("llama")
    mask, optimizer, start = mask_for(model), slow_adamw(model), reference.weights(model)
    freezer = freeze(model, optimizer, mask)
    half_a_step(model, optimizer)
    reference.train(model, optimizer, reference.batches(1))
    assert_frozen(model, start, reference.dense(model, mask))
    freezer.check()


def test_freezing_anew_after_half_a_step_holds_what_was_frozen_at_first() -> None:
    model = tiny.model("llama")
    mask, optimizer, start = mask_for(model), slow_adamw(model), reference.weights(model)
    first = freeze(model, optimizer, mask).fingerprint
    half_a_step(model, optimizer)
    assert freeze(model, slow_adamw(model), mask).fingerprint == first
    assert_frozen(model, start, reference.dense(model, mask))


def test_freezing_anew_what_changed_while_it_was_frozen_is_refused_until_that_freezer_is_released() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    freezer = freeze(model, adamw(model), mask)
    p, place = first_frozen(model, mask)
    p.data[place] += 1e-3
    for _ in range(2):
        with pytest.raises(FreezeError, match="frozen elements of this model changed while another freezer held them"):
            freeze(model, adamw(model), mask)
    freezer.release()
    freeze(model, adamw(model), mask).check()


def test_detach_gives_back_normal_training() -> None:
    model = tiny.model("llama")
    other = copy.deepcopy(model)
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask_for(model))
    freezer.detach()
    data = reference.batches(3)
    norms = reference.train(model, optimizer, data)
    assert norms == reference.train(other, adamw(other), data)
    assert_same(model, other)


def test_detach_checks_first() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    freezer = freeze(model, adamw(model), mask)
    p, place = first_frozen(model, mask)
    with torch.no_grad():
        p[place] += 1
    with pytest.raises(FreezeError, match="frozen elements changed"):
        freezer.detach()


def test_two_masks_may_be_frozen_at_once() -> None:
    model = tiny.model("llama")
    optimizer = adamw(model)
    a, b = mask_for(model, 0.2, seed=1), mask_for(model, 0.2, seed=2)
    frozen, start = reference.dense(model, a | b), reference.weights(model)
    other = copy.deepcopy(model)
    freeze(model, optimizer, a)
    freeze(model, optimizer, b)
    reference.train(model, optimizer, reference.batches(3))
    reference.train_frozen(other, adamw(other), reference.batches(3), frozen)
    assert_frozen(model, start, frozen)
    assert_same(model, other)
