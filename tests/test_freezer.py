"""The guarantee on one process, against tests/reference.py; bits throughout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from neurofreeze import freeze
from neurofreeze.mask import NeuronMask
from tests import reference, tiny
from tests.reference import adamw, assert_frozen, assert_no_moments, assert_same, mask_for

STEPS = 20
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": partial(torch.optim.AdamW, foreach=False),
    "AdamW-foreach": partial(torch.optim.AdamW, foreach=True),
    "AdamW-fused": partial(torch.optim.AdamW, fused=True),
    "AdamW-amsgrad": partial(torch.optim.AdamW, amsgrad=True),
    "Adam": torch.optim.Adam,
    "SGD": partial(torch.optim.SGD, momentum=0.9),
    "NAdam": torch.optim.NAdam,
    "RMSprop": partial(torch.optim.RMSprop, momentum=0.9, centered=True),
    "Adagrad": torch.optim.Adagrad,
    "Adafactor": torch.optim.Adafactor,
    "transformers-Adafactor": partial(Adafactor, scale_parameter=False, relative_step=False, beta1=0.9),
}


def assert_guarantee(
    model: Any,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    mask: NeuronMask,
    steps: int = STEPS,
    prepare: Callable[[Any], Any] = lambda model: model,
) -> None:
    """Train under the freezer and by the reference; frozen, trainable, norms and moments must all agree."""
    other, frozen, start = copy.deepcopy(model), reference.dense(model, mask), reference.weights(model)
    data = reference.batches(steps, accumulation=2)
    options = {"lr": 0.05, "weight_decay": 0.1}
    expected = reference.train_frozen(other, make_optimizer(other.parameters(), **options), data, frozen)

    optimizer = make_optimizer(model.parameters(), **options)
    prepared = prepare(model)
    freezer = freeze(prepared, optimizer, mask)
    norms = reference.train(prepared, optimizer, data)

    assert_frozen(model, start, frozen)
    assert_same(model, other)
    assert all(torch.equal(a, b) for a, b in zip(norms, expected, strict=True))
    assert_no_moments(model, optimizer, frozen)
    assert freezer.check() == freezer.fingerprint
    for name, p in model.named_parameters():
        assert frozen[name].all() or not torch.equal(p, start[name]), f"{name} did not train"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_guarantee_under_every_optimizer(optimizer: str) -> None:
    model = tiny.model("llama")
    assert_guarantee(model, OPTIMIZERS[optimizer], mask_for(model))


@pytest.mark.parametrize("granularity", ["head", "channel"])
@pytest.mark.parametrize("architecture", [a for a in tiny.CONFIGS if a != "llama"])
def test_the_guarantee_in_every_architecture(architecture: str, granularity: Any) -> None:
    model = tiny.model(architecture)
    assert_guarantee(model, torch.optim.AdamW, mask_for(model, granularity=granularity), steps=5)


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW-fused", "Adam", "SGD", "transformers-Adafactor"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_guarantee_in_lower_precision(dtype: torch.dtype, optimizer: str) -> None:
    model = tiny.model("llama", dtype=dtype)
    assert_guarantee(model, OPTIMIZERS[optimizer], mask_for(model), steps=5)


def test_the_guarantee_with_gradient_checkpointing() -> None:
    model = tiny.model("llama").train()
    model.gradient_checkpointing_enable()
    assert_guarantee(model, torch.optim.AdamW, mask_for(model), steps=5)


@pytest.mark.slow
def test_the_guarantee_with_torch_compile() -> None:
    # aot_eager compiles the graphs of both passes and computes them with the same kernels: bits stay comparable.
    model = tiny.model("llama")
    compiled = partial(torch.compile, backend="aot_eager")
    assert_guarantee(model, torch.optim.AdamW, mask_for(model), steps=3, prepare=compiled)


def test_the_guarantee_with_almost_everything_frozen() -> None:
    model = tiny.model("llama")
    assert_guarantee(model, torch.optim.Adam, mask_for(model, 0.97), steps=5)


def test_the_guarantee_with_one_neuron_frozen() -> None:
    model = tiny.model("gpt2")
    mask = mask_for(model, 1 / 152)
    assert mask.count == 1
    assert_guarantee(model, torch.optim.AdamW, mask, steps=5)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_frozen_gradient_that_is_not_finite_harms_nothing(value: float) -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    frozen = reference.dense(model, mask)

    def poison(prepared: Any) -> Any:
        for name, p in prepared.named_parameters():
            p.register_hook(lambda grad, where=frozen[name]: grad.masked_fill(where, value))
        return prepared

    assert_guarantee(model, torch.optim.AdamW, mask, steps=3, prepare=poison)


def test_moments_from_before_freezing_are_cleared() -> None:
    model = tiny.model("llama")
    optimizer, mask = adamw(model), mask_for(model)
    frozen = reference.dense(model, mask)
    reference.train(model, optimizer, reference.batches(3))
    other = copy.deepcopy(model)
    other_optimizer = adamw(other)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name, p in other.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert other_optimizer.state[p][moment].any()
            other_optimizer.state[p][moment][frozen[name]] = 0

    start = reference.weights(model)
    freeze(model, optimizer, mask)
    assert_no_moments(model, optimizer, frozen)
    reference.train(model, optimizer, reference.batches(5, seed=1))
    reference.train_frozen(other, other_optimizer, reference.batches(5, seed=1), frozen)
    assert_frozen(model, start, frozen)
    assert_same(model, other)


def test_steps_that_a_gradient_scaler_skips_change_nothing() -> None:
    model = tiny.model("llama", dtype=torch.float32)
    optimizer, mask = adamw(model), mask_for(model)
    frozen, start = reference.dense(model, mask), reference.weights(model)
    freezer = freeze(model, optimizer, mask)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, (ids,) in enumerate(reference.batches(6)):
        scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
        before = reference.weights(model)
        if step in (0, 3):
            model.model.embed_tokens.weight.grad[5, 5] = torch.inf
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        skipped = all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        assert skipped == (step in (0, 3))
    assert_frozen(model, start, frozen)
    assert_no_moments(model, optimizer, frozen)
    freezer.check()


@pytest.mark.parametrize("scheduler_first", [True, False])
def test_a_learning_rate_scheduler_may_wrap_the_step(scheduler_first: bool) -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    other, frozen, start = copy.deepcopy(model), reference.dense(model, mask), reference.weights(model)
    optimizer, other_optimizer = adamw(model), adamw(other)
    if not scheduler_first:
        freeze(model, optimizer, mask)
    schedulers = [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=4) for o in (optimizer, other_optimizer)]
    if scheduler_first:
        freeze(model, optimizer, mask)
    for step in reference.batches(5):
        reference.train(model, optimizer, [step])
        reference.train_frozen(other, other_optimizer, [step], frozen)
        for scheduler in schedulers:
            scheduler.step()
    assert_frozen(model, start, frozen)
    assert_same(model, other)


def test_a_step_with_a_closure() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    other, frozen, start = copy.deepcopy(model), reference.dense(model, mask), reference.weights(model)
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask)
    data = reference.batches(5)
    for micro_batches in data:

        def closure(micro_batches: reference.Batches = micro_batches) -> float:
            optimizer.zero_grad()
            reference.backward(model, micro_batches)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            return 0.0

        assert optimizer.step(closure) == 0.0
    reference.train_frozen(other, adamw(other), data, frozen)
    assert_frozen(model, start, frozen)
    assert_same(model, other)
    freezer.check()


class DecaysRoundIt(torch.optim.SGD):
    """Moves weights before and after the step of its base class, whose hooks fire within its own."""

    def step(self, closure: Any = None) -> Any:
        self._decay()
        loss = super().step(closure)
        self._decay()
        return loss

    @torch.no_grad()
    def _decay(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.mul_(0.99)


def test_a_step_within_a_step() -> None:
    torch.optim.SGD([nn.Parameter(torch.zeros(1))])  # torch gives a class's step its hooks once there is one of it
    model = tiny.model("llama")
    assert_guarantee(model, DecaysRoundIt, mask_for(model), steps=3)


def test_gradients_may_be_kept_and_zeroed_in_place() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    other, frozen, start = copy.deepcopy(model), reference.dense(model, mask), reference.weights(model)
    optimizer = adamw(model)
    freeze(model, optimizer, mask)
    data = reference.batches(5)
    for micro_batches in data:
        reference.backward(model, micro_batches)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    reference.train_frozen(other, adamw(other), data, frozen)
    assert_frozen(model, start, frozen)
    assert_same(model, other)


def test_the_fingerprint_does_not_depend_on_the_precision_it_is_held_in() -> None:
    model = tiny.model("llama", dtype=torch.bfloat16)
    wide = copy.deepcopy(model).float()
    mask = mask_for(model)
    assert freeze(model, adamw(model), mask).fingerprint == freeze(wide, adamw(wide), mask).fingerprint


def test_a_mask_may_carry_the_fingerprint_of_these_weights() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    fingerprint = freeze(model, adamw(model), mask).fingerprint
    assert freeze(model, adamw(model), mask.with_config(fingerprint=fingerprint)).fingerprint == fingerprint
