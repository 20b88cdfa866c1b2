"""Watching and replacing what flows through experts: the model computes what it did, and is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neurofreeze.activations import Flow, tapped
from neurofreeze.errors import ArchitectureError
from tests import tiny
from tests.test_architectures import CASES

IDS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))
DOWN = "model.layers.1.mlp.experts.down_proj"
with_experts = pytest.mark.parametrize("architecture", [name for name, case in CASES.items() if case.experts])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@with_experts
def test_watched_experts_give_what_the_model_s_own_give(architecture: str) -> None:
    model = tiny.model(architecture)
    own, seen = logits(model), []
    places = [(DOWN.replace("down", kind), side) for kind in ("gate_up", "down") for side in ("input", "output")]
    with tapped(model, dict.fromkeys(places, seen.append)):
        watched = logits(model)
    torch.testing.assert_close(watched, own, rtol=0, atol=1e-12)
    assert [flow.values.shape[1] for flow in seen] == [36, 20, 10, 36]
    assert torch.equal(logits(model), own)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_whatever_implementation_the_model_runs(implementation: str) -> None:
    # grouped_mm wants rows of a multiple of 16 bytes.
    model = tiny.model("mixtral", dtype=torch.float32, intermediate_size=12)
    model.set_experts_implementation(implementation)
    own = logits(model)
    with tapped(model, {(DOWN, "input"): lambda flow: None}):
        torch.testing.assert_close(logits(model), own)
    assert model.config._experts_implementation == implementation


def test_a_token_is_there_once_for_each_expert_that_it_reached() -> None:
    model, seen, routed = tiny.model("mixtral"), [], []
    experts = model.model.layers[1].mlp.experts
    experts.register_forward_pre_hook(lambda _, args: routed.append(args[:2]))
    with tapped(model, {(f"{DOWN[:-9]}gate_up_proj", "input"): seen.append}):
        logits(model)
    ((hidden, chosen),), (flow,) = routed, seen
    assert flow.routing is not None
    assert len(flow.values) == 2 * IDS.numel() == sum(flow.routing.counts)
    assert torch.equal(flow.values, hidden[flow.routing.tokens])
    for expert, tokens in enumerate(flow.routing.tokens.split(flow.routing.counts)):
        assert torch.equal(tokens, (chosen == expert).any(1).nonzero()[:, 0])


def test_what_is_returned_flows_on_and_the_outer_block_comes_first() -> None:
    model = tiny.model("mixtral")
    own, before, after = logits(model), [], []

    def more(flow: Flow) -> torch.Tensor:
        return flow.values + 1

    def less(flow: Flow) -> torch.Tensor:
        return flow.values - 1

    with tapped(model, {(DOWN, "input"): before.append}), tapped(model, {(DOWN, "input"): more}):
        with tapped(model, {(DOWN, "input"): after.append}):
            assert not torch.allclose(logits(model), own)
        assert torch.equal(after[0].values, before[0].values + 1)
        with tapped(model, {(DOWN, "input"): less}):
            torch.testing.assert_close(logits(model), own, rtol=0, atol=1e-12)
    assert torch.equal(logits(model), own)


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = tiny.model("mixtral")
    config, own = model.config, logits(model)

    def broken(_: Flow) -> None:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"), tapped(model, {(DOWN, "input"): broken}):
        logits(model)
    assert all(module.config is config for module in model.modules() if hasattr(module, "config"))
    assert config._experts_implementation == "eager"
    assert torch.equal(logits(model), own)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.experts.up_proj", "model.layers.9.mlp.down_proj", "nothing"])
def test_what_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(ArchitectureError, match=f"{name} is neither a module nor a stack of experts"):
        tapped(tiny.model("mixtral"), {(name, "input"): lambda flow: None}).__enter__()


def test_a_rank_s_share_of_the_experts_is_refused() -> None:
    model = tiny.model("mixtral")
    model.model.layers[1].mlp.experts._is_expert_parallel = True
    with pytest.raises(ArchitectureError, match="holds only this rank's experts"):
        tapped(model, {(DOWN, "input"): lambda flow: None}).__enter__()
