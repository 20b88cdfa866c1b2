"""What a NeuronMap is made from, refuses and counts; tests/test_architectures.py shows that it is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from neurofreeze.architectures import PLANS
from neurofreeze.errors import ArchitectureError, ConfigError
from neurofreeze.neurons import Member, NeuronMap, Site, canonical_name
from tests import tiny
from tests.reference import line

GRANULARITIES = ("head", "channel")

every_architecture = pytest.mark.parametrize("architecture", tiny.CONFIGS)
every_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {architecture: tiny.model(architecture) for architecture in tiny.CONFIGS}


def test_sites_are_named_by_layer_and_block() -> None:
    assert {name: site.neurons for name, site in NeuronMap.of(tiny.config("deepseek_v3")).sites.items()} == {
        "layers.0.mlp": 70,
        "layers.1.mlp.experts": 5 * 10,
        "layers.1.mlp.shared": 2 * 10,
    }
    assert {name: site.neurons for name, site in NeuronMap.of(tiny.config("qwen3"), "channel").sites.items()} == {
        "layers.0.attention": 48,
        "layers.0.mlp": 70,
        "layers.1.attention": 48,
        "layers.1.mlp": 70,
    }


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
    config = AutoConfig.for_model("codegen", n_layer=2, n_head=4, n_embd=32, vocab_size=64, rotary_dim=4)
    with pytest.raises(ArchitectureError, match=r"'codegen' .*qkv_proj"):
        NeuronMap.of(config)


def test_a_projection_of_an_unknown_layout_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "codegen", {"h.*.attn.qkv_proj": "colwise", "h.*.attn.out_proj": "rowwise"})
    config = AutoConfig.for_model("codegen", n_layer=2, n_head=4, n_embd=32, vocab_size=64, rotary_dim=4)
    with pytest.raises(ArchitectureError, match=r"h.0.attn reads through \['qkv_proj'\]; expected q_proj"):
        NeuronMap.of(config)


def split(monkeypatch: pytest.MonkeyPatch, architecture: str, **styles: str) -> Any:
    """A tiny config whose plan splits the modules of this leaf name otherwise."""
    config = tiny.config(architecture)
    plan = PLANS.get(config.model_type, config.base_model_tp_plan)
    changed = {pattern: styles.get(pattern.rpartition(".")[2], style) for pattern, style in (plan or {}).items()}
    monkeypatch.setitem(PLANS, config.model_type, changed)
    return config


def test_a_style_of_splitting_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArchitectureError, match=r"layers.\*.self_attn.o_proj is split as 'diagonal'"):
        NeuronMap.of(split(monkeypatch, "llama", o_proj="diagonal"))


def test_a_block_that_writes_through_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ArchitectureError, match=r"block model.layers.0.mlp .*down_proj'\] and row-parallel modules \[\]"
    ):
        NeuronMap.of(split(monkeypatch, "llama", down_proj="colwise"))


@pytest.mark.parametrize(
    ("architecture", "styles"),
    [
        ("mixtral", {"gate_up_proj": "colwise"}),
        ("mixtral", {"gate_up_proj": "packed_rowwise", "down_proj": "colwise"}),
        ("mixtral", {"down_proj": "colwise"}),
        ("gpt_oss", {"gate_up_proj": "packed_rowwise"}),
        ("gpt_oss", {"gate_up_proj": "colwise", "down_proj": "rowwise"}),
    ],
)
def test_experts_whose_plan_contradicts_their_storage_are_refused(
    architecture: str, styles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArchitectureError, match=r"layers.0.mlp.experts is stored with .* splits it as"):
        NeuronMap.of(split(monkeypatch, architecture, **styles))


def test_experts_made_of_other_matrices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "mixtral", {"layers.*.mlp.experts.down_proj": "rowwise"})
    with pytest.raises(ArchitectureError, match=r"experts model.layers.0.mlp.experts are made of \['down_proj'\]"):
        NeuronMap.of(tiny.config("mixtral"))


def test_two_blocks_of_one_name_are_refused() -> None:
    site = Site("layers.0.mlp", "mlp", 0, (), Member("down.weight", 1, np.arange(4)[:, None]))
    with pytest.raises(ArchitectureError, match=r"two blocks are both called layers.0.mlp"):
        NeuronMap("own", [site, site], {"down.weight": (3, 4)})


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
    dense = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in neuron_map.shapes.items()}
    for site in neuron_map.sites.values():
        for member in site.members:
            for neuron in np.flatnonzero(bits[site.name]):
                for index in member.index[neuron].tolist():
                    line(dense[member.parameter], member.axis, index).fill_(True)
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
        (Member("down.weight", 2, np.arange(9, 13)[:, None]), r"down.weight of shape \(3, 4\) is too small"),
        (Member("down.weight", 3, np.arange(4)[:, None]), r"down.weight of shape \(3, 4\) is too small"),
        (
            Member("up.weight", 1, np.arange(3)[:, None]),
            "up.weight would hold both row neurons and column neurons",
        ),
    ],
)
def test_a_map_that_does_not_fit_its_shapes_is_refused(writes: Member, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        by_hand(writes)
