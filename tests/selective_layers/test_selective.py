"""What trains in part trains as under a dense mask: each architecture, each way to train, in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import neurofreeze as nf
from neurofreeze.mask import MaskConfig
from neurofreeze.selective_layers.modules import Selective
from tests import reference, tiny
from tests.selective_layers import twins
from tests.selective_layers.twins import MODES, Losses, Train, Twins, adamw, assert_moved_where_it_may, distance

UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"
STEPS = 3


def train_both(
    pair: Twins, optimizer_of: Callable[[Any], torch.optim.Optimizer] = adamw, tolerance: float = 1e-12
) -> tuple[Losses, Losses, torch.optim.Optimizer]:
    """Train both for some steps of two micro-batches each, which must come to the same.

    Returns the losses of both, and the selective one's optimizer.
    """
    data = reference.batches(STEPS, accumulation=2)
    start = reference.weights(pair.ordinary)
    losses, selective_losses = Losses(pair.ordinary), Losses(pair.selective)
    optimizer = optimizer_of(pair.selective)
    norms = reference.train_frozen(pair.ordinary, optimizer_of(pair.ordinary), data, pair.frozen)
    selective_norms = reference.train(pair.selective, optimizer, data)
    for norm, expected in zip(selective_norms, norms, strict=True):
        assert norm.item() == pytest.approx(expected.item(), rel=tolerance)
    assert_moved_where_it_may(pair.selective, start, pair.frozen)
    assert selective_losses == pytest.approx(losses, rel=tolerance)
    assert distance(pair.ordinary, pair.selective) <= tolerance
    return losses, selective_losses, optimizer


@pytest.mark.parametrize("train", MODES)
@pytest.mark.parametrize("architecture", tiny.CONFIGS)
def test_training_equals_that_under_a_dense_mask(architecture: str, train: Train) -> None:
    pair = twins.of(architecture, train)
    losses, selective_losses, optimizer = train_both(pair)
    assert selective_losses[:2] == losses[:2]

    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    kept = sum(p.numel() for p in pair.selective.parameters() if id(p) in held)
    assert kept == sum(int((~at).sum()) for at in pair.frozen.values())
    assert all(moment.numel() in (1, p.numel()) for p in optimizer.state for moment in optimizer.state[p].values())
    assert all((p.grad is None) for p in pair.selective.parameters() if id(p) not in held)


# In these precisions only the first step's losses are the same by construction. The rest is as equal as products of
# fewer rows are to the same rows of a larger product, which depends on the BLAS.
@pytest.mark.parametrize("train", MODES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "mixtral"])
def test_lower_precisions_train_as_they_do_under_a_dense_mask(
    architecture: str, dtype: torch.dtype, tolerance: float, train: Train
) -> None:
    pair = twins.of(architecture, train, dtype)
    losses, selective_losses, _ = train_both(pair, tolerance=tolerance)
    assert selective_losses[:2] == losses[:2]


@pytest.mark.parametrize("train", MODES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss"])
def test_autocast_trains_as_it_does_under_a_dense_mask(architecture: str, train: Train) -> None:
    pair = twins.of(architecture, train, torch.float32)
    for model in (pair.ordinary, pair.selective):
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    losses, selective_losses, _ = train_both(pair, tolerance=0.02)
    assert selective_losses[:2] == losses[:2]
    assert {p.grad.dtype for p in pair.selective.parameters() if p.grad is not None} <= {torch.float32}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_gradient_checkpointing(architecture: str, reentrant: bool) -> None:
    no_dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if architecture == "gpt2" else {}
    pair = twins.of(architecture, "unmasked", **no_dropout)
    pair.ordinary.train()
    pair.selective.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert pair.selective.is_gradient_checkpointing
    train_both(pair)


def by_layer(model: Any, **options: Any) -> None:
    for layer in model.model.layers:
        layer.compile(**options)


def as_a_whole(model: Any, **options: Any) -> None:
    model.compile(**options)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [by_layer, as_a_whole], ids=lambda f: f.__name__)
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_torch_compile(architecture: str, compiled: Callable[..., None]) -> None:
    torch._dynamo.reset()
    pair = twins.of(architecture, "unmasked")
    compiled(pair.selective, backend="aot_eager")
    train_both(pair)


@pytest.mark.slow
def test_torch_compile_to_machine_code() -> None:
    torch._dynamo.reset()
    pair = twins.of("llama", "unmasked")
    by_layer(pair.selective, backend="inductor", fullgraph=True)
    train_both(pair, tolerance=1e-6)  # norms are float32 even in a float64 model, and add up in another order


def test_two_forward_passes_before_one_backward() -> None:
    (one, two), *_ = reference.batches(1, accumulation=2)
    pair = twins.of("llama", "unmasked")
    for model in (pair.ordinary, pair.selective):
        (model(input_ids=one, labels=one).loss + model(input_ids=two, labels=two).loss).backward()
    trained = pair.selective.get_submodule(UP)
    expected = pair.ordinary.get_submodule(UP).weight.grad[~pair.frozen[f"{UP}.weight"].any(1)]
    assert (trained.weight_trained.grad - expected).abs().max() <= 1e-14


def test_a_step_between_forward_and_backward_is_refused_as_for_any_parameter() -> None:
    pair = twins.of("llama", "unmasked")
    optimizer = adamw(pair.selective)
    ((ids,),) = reference.batches(1)
    loss = pair.selective(input_ids=ids, labels=ids).loss
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_refused() -> None:
    module = twins.of("llama", "unmasked").selective.get_submodule(UP)
    x = torch.randn(3, 36, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW foreach": lambda model: adamw(model, foreach=True),
    "AdamW fused": lambda model: adamw(model, fused=True),
    "SGD with momentum": lambda model: torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1, momentum=0.9
    ),
}


@pytest.mark.parametrize("train", MODES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_other_optimizers(optimizer: str, train: Train) -> None:
    pair = twins.of("llama", train)
    train_both(pair, OPTIMIZERS[optimizer])


def test_optimizers_that_share_statistics_see_only_what_trains() -> None:
    """Adafactor keeps the mean square of rows and columns: here of the chosen lines, there of frozen zeros too."""
    pair = twins.of("llama", "masked")
    start = reference.weights(pair.ordinary)
    optimizer = torch.optim.Adafactor([p for p in pair.selective.parameters() if p.requires_grad], lr=0.05)
    reference.train(pair.selective, optimizer, reference.batches(STEPS))
    assert_moved_where_it_may(pair.selective, start, pair.frozen)
    module = pair.selective.get_submodule(UP)
    assert optimizer.state[module.weight_trained]["row_var"].shape == (len(module.weight_trained), 1)


@pytest.mark.parametrize("train", MODES)
def test_attention_by_channel(train: Train) -> None:
    pair = twins.twins(tiny.model("llama"), train, granularity="channel")
    train_both(pair)


def test_kv_heads_that_others_share_stay_frozen() -> None:
    model = tiny.model("llama")  # query heads 0 to 2 use KV head 0, heads 3 to 5 KV head 1; 6 channels each
    name = "model.layers.0.self_attn"
    neuron_map = nf.NeuronMap.of(model)
    bits = {site: np.zeros(found.neurons, dtype=bool) for site, found in neuron_map.sites.items()}
    bits["layers.0.attention"][[0, 3, 4, 5]] = True
    selective = nf.selective(model, nf.NeuronMask(bits, MaskConfig.of(neuron_map)), train="masked")
    attention = selective.get_submodule(name)
    assert attention.k_proj.selective_lines["weight"].selection.index.tolist() == list(range(6, 12))
    assert attention.q_proj.weight_trained.shape == (4 * 6, 36)
    assert attention.o_proj.weight_trained.shape == (4 * 6, 36)
    weights, biases = ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "k_proj", "v_proj")
    assert {name for name, p in selective.named_parameters() if p.requires_grad} == {
        *(f"{name}.{projection}.weight_trained" for projection in weights),
        *(f"{name}.{projection}.bias_trained" for projection in biases),
    }


def test_a_parameter_read_outside_its_module_is_the_merged_one_and_gets_gradients() -> None:
    pair = twins.of("llama", "unmasked")
    reference.train(pair.selective, adamw(pair.selective), reference.batches(1))
    now = copy.deepcopy(pair.selective).state_dict()
    frozen = pair.frozen[f"{UP}.weight"].any(1)
    module = pair.selective.get_submodule(UP)
    assert torch.equal(module.weight, now[f"{UP}.weight"])
    assert torch.equal(module.bias, now[f"{UP}.bias"])
    module.weight.square().sum().backward()
    assert torch.equal(module.weight_trained.grad, 2 * now[f"{UP}.weight"][~frozen])


@pytest.mark.parametrize("train", MODES)
def test_a_copy_trains_on_its_own(train: Train) -> None:
    pair = twins.of("llama", train)
    other = copy.deepcopy(pair.selective)
    untouched = {name: tensor.clone() for name, tensor in pair.selective.state_dict().items()}
    reference.train_frozen(pair.ordinary, adamw(pair.ordinary), reference.batches(STEPS), pair.frozen)
    reference.train(other, adamw(other), reference.batches(STEPS))
    assert distance(pair.ordinary, other) <= 1e-12
    for name, tensor in pair.selective.state_dict().items():
        assert torch.equal(tensor, untouched[name]), name


@pytest.mark.parametrize("train", MODES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss", "deepseek_v3"])
def test_merging_gives_the_ordinary_model_back(architecture: str, train: Train) -> None:
    model = tiny.model(architecture)
    model.get_input_embeddings().weight.requires_grad_(False)
    classes = [type(module) for module in model.modules()]
    names = [(name, p.requires_grad) for name, p in model.named_parameters()]
    selective = nf.selective(model, reference.mask_for(model), train=train)
    assert any(isinstance(module, Selective) for module in selective.modules())
    reference.train(selective, adamw(selective), reference.batches(1))
    ((ids,),) = reference.batches(1, seed=1)
    with torch.no_grad():
        expected = selective(input_ids=ids).logits
    assert nf.merge(selective) is model
    assert [type(module) for module in model.modules()] == classes
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == names
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected)
    nf.selective(model, reference.mask_for(model), train=train)


def test_merging_finds_the_model_in_its_wrappers() -> None:
    pair = twins.of("llama", "unmasked")
    before = {name for name, p in pair.ordinary.named_parameters() if p.requires_grad}
    wrapped = torch.compile(pair.selective, backend="eager")
    assert nf.merge(wrapped) is wrapped
    assert {name for name, p in pair.selective.named_parameters() if p.requires_grad} == before


def test_whole_blocks_need_no_selective_layers() -> None:
    model = tiny.model("llama")
    neuron_map = nf.NeuronMap.of(model)
    bits = {name: np.full(site.neurons, site.layer == 0) for name, site in neuron_map.sites.items()}
    selective = nf.selective(model, nf.NeuronMask(bits, MaskConfig.of(neuron_map)), train="unmasked")
    assert not any(isinstance(module, Selective) for module in selective.modules())
    for name, p in selective.named_parameters():
        in_neurons = ".layers.0." in name and name not in neuron_map.rest
        assert p.requires_grad == (not in_neurons), name
    assert all(p.requires_grad for p in nf.merge(selective).parameters())


def test_what_does_not_train_is_left_so() -> None:
    model = tiny.model("llama")
    model.get_submodule(UP).weight.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(False)
    selective = nf.selective(model, reference.mask_for(model), train="unmasked")
    trainable = {name for name, p in selective.named_parameters() if p.requires_grad}
    assert f"{UP}.bias_trained" in trainable
    assert f"{DOWN}.weight_trained" in trainable
    assert not trainable & {f"{UP}.weight", f"{UP}.weight_trained", "model.embed_tokens.weight"}
