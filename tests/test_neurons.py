"""The map of each architecture against what the model itself computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from neurofreeze.errors import ArchitectureError, ConfigError
from neurofreeze.neurons import Member, NeuronMap, Site, canonical_name
from tests import tiny

GRANULARITIES = ("head", "channel")
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3")  # 6 query heads on 2 KV heads
GROUP = 3
IDS = torch.tensor([[5, 9, 3, 60, 7, 7, 2], [1, 0, 33, 21, 8, 50, 4]])

every_architecture = pytest.mark.parametrize("architecture", tiny.CONFIGS)
every_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {architecture: tiny.model(architecture) for architecture in tiny.CONFIGS}


def some_neurons(site: Site, shared: bool) -> list[list[int]]:
    """Sets of neurons to try: both ends, the middle, a random fifth; whole groups where rows are shared."""
    n = site.neurons
    picks = [
        [0],
        [n // 2],
        [n - 1],
        sorted(np.random.default_rng(n).choice(n, n // 5 + 1, replace=False).tolist()),
    ]
    if site.kind == "mlp" or not shared:
        return picks
    kv = next(member.index for member in site.reads if "v_proj" in member.parameter)
    return [[j for j in range(n) if kv[j, 0] in kv[pick, 0]] for pick in picks]


def logits_with_parts_zeroed(model: Any, members: list[Member], neurons: list[int]) -> torch.Tensor:
    parameters = dict(model.named_parameters())
    before = {member.parameter: parameters[member.parameter].detach().clone() for member in members}
    with torch.no_grad():
        for member in members:
            values = parameters[member.parameter]
            for index in member.index[neurons].ravel().tolist():
                values.select(member.axis, index).zero_()
        logits = model(IDS).logits
        for name, values in before.items():
            parameters[name].copy_(values)
    return logits


def logits_with_channels_zeroed(model: Any, site: Site, neurons: list[int]) -> torch.Tensor:
    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0].clone()
        hidden[..., site.writes.index[neurons].ravel()] = 0
        return (hidden, *inputs[1:])

    handle = model.get_submodule(site.module).register_forward_pre_hook(hook)
    with torch.no_grad():
        logits = model(IDS).logits
    handle.remove()
    return logits


@every_granularity
@every_architecture
def test_zeroing_what_a_neuron_writes_equals_silencing_its_channels(
    architecture: str, granularity: Any, models: dict[str, Any]
) -> None:
    model = models[architecture]
    for site in NeuronMap.of(model, granularity).sites.values():
        for neurons in some_neurons(site, shared=False):
            zeroed = logits_with_parts_zeroed(model, [site.writes], neurons)
            silenced = logits_with_channels_zeroed(model, site, neurons)
            assert (zeroed - silenced).abs().max() <= 1e-12
        assert (zeroed - model(IDS).logits).abs().max() > 1e-6  # the random fifth: one may be a dead ReLU


@every_granularity
@every_architecture
def test_zeroing_what_a_neuron_reads_equals_silencing_its_channels(
    architecture: str, granularity: Any, models: dict[str, Any]
) -> None:
    model = models[architecture]
    for site in NeuronMap.of(model, granularity).sites.values():
        for neurons in some_neurons(site, shared=architecture in GROUPED):
            zeroed = logits_with_parts_zeroed(model, list(site.reads), neurons)
            silenced = logits_with_channels_zeroed(model, site, neurons)
            assert (zeroed - silenced).abs().max() <= 1e-12


@every_granularity
@every_architecture
def test_zeroing_whole_neurons_equals_silencing_their_channels(
    architecture: str, granularity: Any, models: dict[str, Any]
) -> None:
    model = models[architecture]
    for site in NeuronMap.of(model, granularity).sites.values():
        for neurons in some_neurons(site, shared=architecture in GROUPED):
            zeroed = logits_with_parts_zeroed(model, list(site.members), neurons)
            silenced = logits_with_channels_zeroed(model, site, neurons)
            assert (zeroed - silenced).abs().max() <= 1e-12


@pytest.mark.parametrize("part", ["q_proj", "k_proj"])
@pytest.mark.parametrize("architecture", [*GROUPED, "opt"])
def test_queries_and_keys_of_a_head_reach_no_other_head(architecture: str, part: str, models: dict[str, Any]) -> None:
    # Zeroed values hide what the queries and keys of a head do, so those are tried alone.
    model = models[architecture]
    site = NeuronMap.of(model).sites["layers.1.attention"]
    neurons = [3, 4, 5]
    silent = logits_with_channels_zeroed(model, site, neurons)
    members = [member for member in site.reads if part in member.parameter]
    unheard = logits_with_parts_zeroed(model, [*members, site.writes], neurons)
    assert (unheard - silent).abs().max() <= 1e-12
    assert (logits_with_parts_zeroed(model, members, neurons) - model(IDS).logits).abs().max() > 1e-6


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_a_fused_projection_gives_each_head_its_own_queries_keys_and_values(
    architecture: str, models: dict[str, Any]
) -> None:
    site = NeuronMap.of(models[architecture]).sites["layers.0.attention"]
    dim = 6
    for head in range(6):
        if architecture == "gpt2":  # all queries, all keys, all values
            expected = [36 * part + dim * head + d for part in range(3) for d in range(dim)]
        else:  # head after head, each with its query, key and value
            expected = list(range(3 * dim * head, 3 * dim * (head + 1)))
        for member in site.reads:
            assert sorted(member.index[head].tolist()) == expected


def owners(neuron_map: NeuronMap) -> dict[str, dict[int, list[tuple[str, int]]]]:
    """Parameter -> row or column -> the neurons that name it, counted one by one."""
    found: dict[str, dict[int, list[tuple[str, int]]]] = {}
    for site in neuron_map.sites.values():
        for member in site.members:
            for neuron in range(site.neurons):
                for index in member.index[neuron].tolist():
                    found.setdefault(member.parameter, {}).setdefault(index, []).append((site.name, neuron))
    return found


@every_granularity
@every_architecture
def test_every_element_belongs_to_one_neuron_or_to_a_query_group(architecture: str, granularity: Any) -> None:
    neuron_map = NeuronMap.of(tiny.config(architecture), granularity)
    dim = 8 if architecture == "qwen3" else 6
    for parameter, by_index in owners(neuron_map).items():
        for index, names in by_index.items():
            if architecture in GROUPED and (".k_proj." in parameter or ".v_proj." in parameter):
                kv_head, d = divmod(index, dim)
                heads = range(GROUP * kv_head, GROUP * (kv_head + 1))
                expected = list(heads) if granularity == "head" else [head * dim + d for head in heads]
                assert [neuron for _, neuron in names] == expected
            else:
                assert len(names) == 1


@every_granularity
@every_architecture
def test_members_and_rest_partition_all_parameters(architecture: str, granularity: Any) -> None:
    neuron_map = NeuronMap.of(tiny.config(architecture), granularity)
    parameters = {name: tuple(p.shape) for name, p in tiny.model(architecture).named_parameters()}
    assert neuron_map.shapes == parameters
    covered = owners(neuron_map)
    assert sorted([*covered, *neuron_map.rest]) == sorted(parameters)
    axes = {member.parameter: member.axis for member in neuron_map.members()}
    fused = granularity == "channel" and architecture in ("gpt2", "gpt_neox")
    for parameter, by_index in covered.items():
        size = parameters[parameter][axes[parameter]]
        if fused and ("c_attn" in parameter or "query_key_value" in parameter):
            size //= 3  # queries and keys are shared by all channels of a head
        assert len(by_index) == size


@every_granularity
@every_architecture
def test_each_layer_has_an_attention_and_an_mlp_site(architecture: str, granularity: Any) -> None:
    neuron_map = NeuronMap.of(tiny.config(architecture), granularity)
    channels = 48 if architecture == "qwen3" else 36
    heads = 6 if granularity == "head" else channels
    assert {name: site.neurons for name, site in neuron_map.sites.items()} == {
        "layers.0.attention": heads,
        "layers.0.mlp": 70,
        "layers.1.attention": heads,
        "layers.1.mlp": 70,
    }
    assert list(neuron_map.sites) == sorted(neuron_map.sites)
    assert neuron_map.total == 2 * (heads + 70)


def test_twelve_layers_come_in_order_of_depth() -> None:
    neuron_map = NeuronMap.of(tiny.config(num_hidden_layers=12))
    assert [site.layer for site in neuron_map.sites.values()] == [layer for layer in range(12) for _ in range(2)]


def same_map(found: NeuronMap, expected: NeuronMap) -> bool:
    for a, b in zip(found.members(), expected.members(), strict=True):
        if (a.parameter, a.axis) != (b.parameter, b.axis) or not np.array_equal(a.index, b.index):
            return False
    return found.shapes == expected.shapes and found.digest == expected.digest


@every_granularity
@every_architecture
def test_a_config_and_its_model_have_the_same_map(architecture: str, granularity: Any, models: dict[str, Any]) -> None:
    from_config = NeuronMap.of(models[architecture].config, granularity)
    assert same_map(NeuronMap.of(models[architecture], granularity), from_config)


def test_a_wrapped_model_has_the_map_of_the_model_inside(models: dict[str, Any]) -> None:
    class Wrapper(nn.Module):  # holds the model as DistributedDataParallel does, and forwards no attribute
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    expected = NeuronMap.of(models["llama"])
    assert same_map(NeuronMap.of(Wrapper(models["llama"])), expected)
    assert same_map(NeuronMap.of(torch.compile(models["llama"])), expected)
    assert same_map(NeuronMap.of(torch.compile(Wrapper(models["llama"]))), expected)


def test_mapping_a_model_leaves_its_weights_and_config_alone(models: dict[str, Any]) -> None:
    model = models["llama"]
    bits = {name: p.detach().view(torch.int64).clone() for name, p in model.named_parameters()}
    config = model.config.to_dict()
    NeuronMap.of(model)
    assert model.config.to_dict() == config
    assert all(torch.equal(p.detach().view(torch.int64), bits[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.up_proj.weight",
        "module.model.layers.0.mlp.up_proj.weight",
        "_orig_mod.module.model.layers.0.mlp.up_proj.weight",
        "module._orig_mod.model.layers.0.mlp.up_proj.weight",
        "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight",
        "model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight",
    ],
)
def test_wrappers_leave_no_trace_in_names(name: str) -> None:
    assert canonical_name(name) == "model.layers.0.mlp.up_proj.weight"


def test_an_architecture_without_a_plan_is_refused_with_its_modules() -> None:
    config = AutoConfig.for_model("bloom", n_layer=2, n_head=6, hidden_size=36, vocab_size=64)
    with pytest.raises(ArchitectureError, match=r"'bloom' .*query_key_value"):
        NeuronMap.of(config)


def test_a_packed_projection_is_refused_by_name() -> None:
    config = AutoConfig.for_model("phi3", **tiny.CONFIGS["qwen2"])
    with pytest.raises(ArchitectureError, match=r"'phi3' .*qkv_proj is split as 'colwise_gather_output'"):
        NeuronMap.of(config)


def test_a_model_that_is_no_causal_language_model_is_refused_in_one_line() -> None:
    with pytest.raises(ArchitectureError, match=r"'t5' has no causal language model") as caught:
        NeuronMap.of(AutoConfig.for_model("t5"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("thing", [nn.Linear(3, 2), "llama", None, {"model_type": "llama"}])
def test_what_is_no_transformers_model_is_refused_with_its_type(thing: Any) -> None:
    with pytest.raises(ArchitectureError, match=f"found {type(thing).__name__}"):
        NeuronMap.of(thing)


@pytest.mark.parametrize("granularity", ["neuron", "", None])
def test_an_unknown_granularity_is_refused(granularity: Any) -> None:
    with pytest.raises(ConfigError, match=f"{granularity!r}.*'head' or 'channel'"):
        NeuronMap.of(tiny.config(), granularity)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="42 channels, 7 query heads and 2 KV heads, which do not divide"):
        NeuronMap.of(tiny.config("mistral", num_attention_heads=7))


def choose(neuron_map: NeuronMap, **chosen: list[int]) -> dict[str, Any]:
    bits = {name: np.zeros(site.neurons, bool) for name, site in neuron_map.sites.items()}
    for name, neurons in chosen.items():
        bits[name.replace("__", ".")][neurons] = True
    return bits


def test_choosing_a_query_head_chooses_the_rows_of_its_kv_head() -> None:
    neuron_map = NeuronMap.of(tiny.config("llama"))
    found = neuron_map.select(choose(neuron_map, layers__1__attention=[4]))
    assert {name: (axis, index.tolist()) for name, (axis, index) in found.items()} == {
        "model.layers.1.self_attn.q_proj.weight": (0, list(range(24, 30))),
        "model.layers.1.self_attn.q_proj.bias": (0, list(range(24, 30))),
        "model.layers.1.self_attn.k_proj.weight": (0, list(range(6, 12))),
        "model.layers.1.self_attn.k_proj.bias": (0, list(range(6, 12))),
        "model.layers.1.self_attn.v_proj.weight": (0, list(range(6, 12))),
        "model.layers.1.self_attn.v_proj.bias": (0, list(range(6, 12))),
        "model.layers.1.self_attn.o_proj.weight": (1, list(range(24, 30))),
    }


def test_choosing_an_mlp_neuron_chooses_its_rows_and_its_column() -> None:
    neuron_map = NeuronMap.of(tiny.config("gpt2"))
    found = neuron_map.select(choose(neuron_map, layers__0__mlp=[69, 11]))
    assert {name: (axis, index.tolist()) for name, (axis, index) in found.items()} == {
        "transformer.h.0.mlp.c_fc.weight": (1, [11, 69]),  # Conv1D keeps its weight transposed
        "transformer.h.0.mlp.c_fc.bias": (0, [11, 69]),
        "transformer.h.0.mlp.c_proj.weight": (0, [11, 69]),
    }


@every_granularity
@every_architecture
def test_elements_equals_a_dense_count(architecture: str, granularity: Any) -> None:
    neuron_map = NeuronMap.of(tiny.config(architecture), granularity)
    rng = np.random.default_rng(3)
    bits = {name: rng.random(site.neurons) < 0.3 for name, site in neuron_map.sites.items()}
    dense = {name: np.zeros(shape, bool) for name, shape in neuron_map.shapes.items()}
    for site in neuron_map.sites.values():
        for member in site.members:
            for neuron in np.flatnonzero(bits[site.name]):
                for index in member.index[neuron]:
                    np.moveaxis(dense[member.parameter], member.axis, 0)[index] = True
    assert neuron_map.elements(bits) == sum(int(d.sum()) for d in dense.values())


def test_tied_embeddings_appear_once() -> None:
    neuron_map = NeuronMap.of(tiny.config("llama"))
    assert "model.embed_tokens.weight" in neuron_map.rest
    assert "lm_head.weight" not in neuron_map.shapes
    assert "lm_head.weight" in NeuronMap.of(tiny.config("llama", tie_word_embeddings=False)).rest


@pytest.mark.parametrize(
    "change",
    [{"intermediate_size": 71}, {"num_key_value_heads": 3}, {"num_attention_heads": 12}, {"mlp_bias": False}],
)
def test_another_layout_has_another_digest(change: dict[str, Any]) -> None:
    assert NeuronMap.of(tiny.config(**change)).digest != NeuronMap.of(tiny.config()).digest


def test_another_granularity_has_another_digest() -> None:
    assert NeuronMap.of(tiny.config(), "head").digest != NeuronMap.of(tiny.config(), "channel").digest


def by_hand(writes: Member, **shapes: tuple[int, ...]) -> NeuronMap:
    reads = (Member("up.weight", 0, np.arange(4)[:, None]),)
    shapes = {"up.weight": (4, 3), "down.weight": (3, 4), **shapes}
    return NeuronMap("own", [Site("layers.0.mlp", "mlp", 0, reads, writes)], shapes)


def test_a_map_built_by_hand_serves_a_model_of_ones_own() -> None:
    neuron_map = by_hand(Member("down.weight", 1, np.arange(4)[:, None]), norm=(3,))
    assert neuron_map.rest == ("norm",)
    assert neuron_map.elements({"layers.0.mlp": np.array([True, False, False, True])}) == 12


def test_a_map_built_by_hand_in_another_order_has_another_digest() -> None:
    forwards = by_hand(Member("down.weight", 1, np.arange(4)[:, None]))
    backwards = by_hand(Member("down.weight", 1, np.arange(4)[::-1, None]))
    assert forwards.digest != backwards.digest


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        (Member("lost.weight", 1, np.arange(4)[:, None]), "lost.weight is in the map but not among"),
        (Member("down.weight", 1, np.arange(1, 5)[:, None]), r"down.weight of shape \(3, 4\) is too small"),
        (Member("down.weight", 1, np.arange(-1, 3)[:, None]), r"down.weight of shape \(3, 4\) is too small"),
        (Member("down.weight", 2, np.arange(4)[:, None]), r"down.weight of shape \(3, 4\) is too small"),
        (
            Member("up.weight", 1, np.arange(3)[:, None]),
            "up.weight would hold both row neurons and column neurons",
        ),
    ],
)
def test_a_map_that_does_not_fit_its_shapes_is_refused(writes: Member, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        by_hand(writes)
