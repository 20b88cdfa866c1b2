"""Each architecture's map against what the model computes: a neuron removed by its weights is removed by a hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import Member, NeuronMap, Site
from tests import reference, tiny
from tests.reference import line


class Case(NamedTuple):
    """One architecture: where its blocks write, said here independently of the map."""

    family: str
    out: str | None = "model.layers.{}.self_attn.o_proj"  # None: attention is not covered
    down: str | None = "model.layers.{}.mlp.down_proj"
    qkv: Literal["separate", "q heads, k heads, v heads", "for each KV head its q heads, k, v"] = "separate"
    group: int = 1  # query heads of a KV head
    shared: str | None = None  # down projection of the shared experts
    experts: Literal["[gate; up]", "gate and up interleaved, transposed"] | None = None
    notes: str = ""

    @property
    def fused(self) -> bool:
        return self.qkv != "separate"


BLOCKS: Any = "q heads, k heads, v heads"
GROUPS: Any = "for each KV head its q heads, k, v"
_FALCON: Any = {"out": "transformer.h.{}.self_attention.dense", "down": "transformer.h.{}.mlp.dense_4h_to_h"}
_GPT2: Any = {"out": "transformer.h.{}.attn.c_proj", "down": "transformer.h.{}.mlp.c_proj"}
_GATED = "q_proj holds, head by head, the query and its gate"
_NORMED = "q and k are normalised over all heads together: a head's q and k reach the others through that norm's scale"

CASES: dict[str, Case] = {
    "llama": Case("Llama 1 to 3, Vicuna, TinyLlama", group=3),
    "mistral": Case("Mistral", group=3),
    "qwen2": Case("Qwen 1.5, 2, 2.5", group=3),
    "qwen3": Case("Qwen 3", group=3),
    "gemma": Case("Gemma", group=3),
    "gemma2": Case("Gemma 2", group=3),
    "gemma3_text": Case("Gemma 3 1B, and the text of the larger ones", group=3),
    "smollm3": Case("SmolLM 3", group=3),
    "olmo2": Case("OLMo 2", group=3, notes=_NORMED),
    "cohere": Case("Command R", group=3),
    "starcoder2": Case("StarCoder 2", down="model.layers.{}.mlp.c_proj", group=3),
    "stablelm": Case("StableLM", group=3),
    "phi3": Case("Phi 3, Phi 4", qkv=BLOCKS, group=3, notes="gate_up_proj is [gate; up]"),
    "gpt2": Case("GPT-2", **_GPT2, qkv=BLOCKS),
    "gpt_bigcode": Case("StarCoder, SantaCoder", **_GPT2, qkv=BLOCKS, group=6),
    "gptj": Case("GPT-J", out="transformer.h.{}.attn.out_proj", down="transformer.h.{}.mlp.fc_out"),
    "gpt_neo": Case("GPT-Neo", out="transformer.h.{}.attn.attention.out_proj", down="transformer.h.{}.mlp.c_proj"),
    "gpt_neox": Case(
        "Pythia, GPT-NeoX",
        out="gpt_neox.layers.{}.attention.dense",
        down="gpt_neox.layers.{}.mlp.dense_4h_to_h",
        qkv=GROUPS,
    ),
    "opt": Case("OPT", out="model.decoder.layers.{}.self_attn.out_proj", down="model.decoder.layers.{}.fc2"),
    "bloom": Case("BLOOM", **_FALCON, qkv=GROUPS),
    "mpt": Case(
        "MPT", out="transformer.blocks.{}.attn.out_proj", down="transformer.blocks.{}.ffn.down_proj", qkv=BLOCKS
    ),
    "falcon": Case("Falcon 7B (multi-query)", **_FALCON, qkv=BLOCKS, group=6),
    "falcon-heads": Case("Falcon RW (all heads)", **_FALCON, qkv=GROUPS),
    "falcon-groups": Case("Falcon 40B, 180B (grouped)", **_FALCON, qkv=GROUPS, group=3),
    "mixtral": Case("Mixtral", down=None, group=3, experts="[gate; up]"),
    "qwen3_moe": Case("Qwen 3 30B-A3B, 235B-A22B", group=3, experts="[gate; up]"),
    "qwen3_next": Case(
        "Qwen3-Next",
        down=None,
        group=3,
        shared="model.layers.{}.mlp.shared_expert.down_proj",
        experts="[gate; up]",
        notes=_GATED,
    ),
    "qwen3_5_text": Case("Qwen 3.5, dense, its text", group=3, notes=_GATED),
    "qwen3_5_moe_text": Case(
        "Qwen 3.5, mixture of experts, its text",
        down=None,
        group=3,
        shared="model.layers.{}.mlp.shared_expert.down_proj",
        experts="[gate; up]",
        notes=_GATED,
    ),
    "deepseek_v3": Case(
        "DeepSeek V3, R1", out=None, shared="model.layers.{}.mlp.shared_experts.down_proj", experts="[gate; up]"
    ),
    "gpt_oss": Case(
        "gpt-oss 20B, 120B",
        down=None,
        group=3,
        experts="gate and up interleaved, transposed",
        notes="a head has its sink; a neuron of an expert has two elements of gate_up_proj_bias",
    ),
}

HEADS = 6
IDS = torch.tensor([[5, 9, 3, 60, 7, 7, 2], [1, 0, 33, 21, 8, 50, 4]])

every_architecture = pytest.mark.parametrize("architecture", CASES)
every_granularity = pytest.mark.parametrize("granularity", ["head", "channel"])
with_attention = pytest.mark.parametrize("architecture", [name for name, case in CASES.items() if case.out])
with_experts = pytest.mark.parametrize("architecture", [name for name, case in CASES.items() if case.experts])


@cache
def model_of(architecture: str) -> Any:
    return tiny.model(architecture)


@cache
def map_of(architecture: str, granularity: Any) -> NeuronMap:
    return NeuronMap.of(model_of(architecture), granularity)


def sites(architecture: str, kind: str, granularity: Any = "head") -> list[Site]:
    """Sites whose activations are a module's input."""
    found = map_of(architecture, granularity).sites.values()
    return [site for site in found if site.kind == kind and not site.name.endswith("experts")]


def down(architecture: str, site: Site) -> nn.Module:
    """The module that the site writes through."""
    case = CASES[architecture]
    path = case.shared if site.name.endswith("shared") else case.out if site.kind == "attention" else case.down
    assert path is not None
    found: nn.Module = model_of(architecture).get_submodule(path.format(site.layer))
    return found


def picks(neurons: int) -> list[list[int]]:
    """Both ends, the middle, and a random fifth."""
    some = np.random.default_rng(neurons).choice(neurons, neurons // 5 + 1, replace=False)
    return [[0], [neurons // 2], [neurons - 1], sorted(some.tolist())]


def channels(architecture: str) -> int:
    """Channels of all heads together."""
    return HEADS * int(getattr(tiny.config(architecture), "head_dim", None) or 6)


@torch.no_grad()
def logits(architecture: str) -> torch.Tensor:
    found: torch.Tensor = model_of(architecture)(IDS).logits
    return found


@contextmanager
def changed(
    architecture: str,
    members: list[Member],
    neurons: list[int],
    change: Callable[[torch.Tensor], torch.Tensor] = torch.zeros_like,
) -> Iterator[None]:
    """With what these neurons own of `members` set to zero, or to `change(values)`."""
    parameters = dict(model_of(architecture).named_parameters())
    before = {member.parameter: parameters[member.parameter].detach().clone() for member in members}
    with torch.no_grad():
        for member in members:
            for index in member.index[neurons].ravel().tolist():
                values = line(parameters[member.parameter], member.axis, index)
                values.copy_(change(values))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, values in before.items():
                parameters[name].copy_(values)


@contextmanager
def silenced(module: nn.Module, channels: list[int]) -> Iterator[None]:
    """With these channels of the module's input zero."""

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0].clone()
        hidden[..., channels] = 0
        return (hidden, *inputs[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def assert_removed(architecture: str, members: Any, neurons: list[int], silent: torch.Tensor) -> None:
    with changed(architecture, list(members), neurons):
        assert (logits(architecture) - silent).abs().max() <= 1e-10


@every_architecture
def test_an_mlp_neuron_is_removed_by_zeroing_what_it_reads_or_writes_or_both(architecture: str) -> None:
    for site in sites(architecture, "mlp"):
        for neurons in picks(site.neurons):
            with silenced(down(architecture, site), neurons):
                silent = logits(architecture)
            for members in (site.reads, [site.writes], site.members):
                assert_removed(architecture, members, neurons, silent)
        # The random fifth: a single one may be a dead ReLU.
        assert (silent - logits(architecture)).abs().max() > 1e-7


@contextmanager
def without_norms_over_all_heads(architecture: str) -> Iterator[None]:
    """With q and k as they are projected, where a norm over all heads would let each reach the others."""
    attention = [module for module in model_of(architecture).modules() if hasattr(module, "q_norm")]
    norms = [(module, module.q_norm, module.k_norm) for module in attention if CASES[architecture].notes == _NORMED]
    for module, *_ in norms:
        module.q_norm = module.k_norm = nn.Identity()
    try:
        yield
    finally:
        for module, query, key in norms:
            module.q_norm, module.k_norm = query, key


def own_rows(site: Site) -> Iterator[Member]:
    """What of each matrix no two neurons share: rows of a KV head that serves several are left out."""
    for member in site.members:
        _, inverse, times = np.unique(member.index, return_inverse=True, return_counts=True)
        alone = (times[inverse].reshape(member.index.shape) == 1).all(axis=0)
        yield Member(member.parameter, member.axis, member.index[:, alone])


@every_granularity
@with_attention
def test_an_attention_neuron_is_removed_by_zeroing_what_it_writes(architecture: str, granularity: Any) -> None:
    for site in sites(architecture, "attention", granularity):
        module = down(architecture, site)
        width = channels(architecture) // site.neurons
        assert width == (1 if granularity == "channel" else channels(architecture) // HEADS)
        for neurons in picks(site.neurons):
            with silenced(module, [width * neuron + d for neuron in neurons for d in range(width)]):
                silent = logits(architecture)
            assert (silent - logits(architecture)).abs().max() > 1e-7
            assert_removed(architecture, [site.writes], neurons, silent)


@every_granularity
@with_attention
def test_an_attention_neuron_is_removed_by_zeroing_all_it_owns(architecture: str, granularity: Any) -> None:
    size = CASES[architecture].group * channels(architecture) // HEADS  # channels of a KV head's query heads
    with without_norms_over_all_heads(architecture):
        for site in sites(architecture, "attention", granularity):
            module, width = down(architecture, site), channels(architecture) // site.neurons
            for neurons in picks(site.neurons):
                with silenced(module, [width * neuron + d for neuron in neurons for d in range(width)]):
                    silent = logits(architecture)
                assert_removed(architecture, own_rows(site), neurons, silent)
            # All that share a KV head lose that too.
            for group in range(channels(architecture) // size):
                together = range(group * size // width, (group + 1) * size // width)
                with silenced(module, list(range(group * size, (group + 1) * size))):
                    silent = logits(architecture)
                assert_removed(architecture, site.members, list(together), silent)


def channels_reached(architecture: str, site: Site, members: list[Member], neuron: int) -> set[int]:
    """Input channels of the output projection that change with what this neuron owns of `members`."""
    found: list[torch.Tensor] = []
    handle = down(architecture, site).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].clone()))
    generator = torch.Generator().manual_seed(neuron)
    logits(architecture)
    with changed(
        architecture, members, [neuron], lambda v: v + torch.randn(v.shape, generator=generator, dtype=v.dtype)
    ):
        logits(architecture)
    handle.remove()
    before, after = (hidden.flatten(0, -2) for hidden in found)
    return set((before != after).any(dim=0).nonzero().flatten().tolist())


def parts(architecture: str, site: Site) -> dict[str, list[Member]]:
    """What the site reads through as "q", "k" and "v", head by head."""
    found: dict[str, list[Member]] = {"q": [], "k": [], "v": []}
    for member in site.reads:
        if CASES[architecture].fused:
            thirds = np.split(member.index, 3, axis=1)
            for part, index in zip(found, thirds, strict=True):
                found[part].append(Member(member.parameter, member.axis, index))
        elif not member.parameter.endswith("sinks"):
            found[member.parameter.rpartition("_proj.")[0][-1]].append(member)
    return found


@with_attention
def test_queries_keys_and_values_reach_only_their_own_heads(architecture: str) -> None:
    group = CASES[architecture].group
    for site in sites(architecture, "attention"):
        dim = site.writes.index.shape[1]
        with without_norms_over_all_heads(architecture):
            for head in range(site.neurons):
                served = range(head // group * group, head // group * group + group)
                everywhere = {other * dim + d for other in served for d in range(dim)}
                found = parts(architecture, site)
                alone = set(range(head * dim, head * dim + dim))
                assert channels_reached(architecture, site, found["q"], head) == alone
                assert channels_reached(architecture, site, found["k"], head) == everywhere
                for d in range(dim):  # a channel of v is a channel of every head it serves
                    values = [Member(m.parameter, m.axis, m.index[:, d : d + 1]) for m in found["v"]]
                    assert channels_reached(architecture, site, values, head) == {o * dim + d for o in served}


@with_attention
def test_a_channel_reads_its_own_value_row(architecture: str) -> None:
    group = CASES[architecture].group
    for site in sites(architecture, "attention", "channel"):
        dim = site.neurons // HEADS
        for member in site.reads:
            for neuron in (0, dim + 1, site.neurons - 1):
                head, d = divmod(neuron, dim)
                size = 1 if ".q_proj" in member.parameter else group  # there, a gate on what one head writes
                served = range(head // size * size, head // size * size + size)
                reached = channels_reached(architecture, site, [member], neuron)
                assert reached == {other * dim + d for other in served}


def test_a_sink_belongs_to_its_head() -> None:
    for site in sites("gpt_oss", "attention"):
        sinks = [member for member in site.reads if member.parameter.endswith("sinks")]
        for head in range(HEADS):
            assert channels_reached("gpt_oss", site, sinks, head) == set(range(6 * head, 6 * head + 6))


def experts_by_hand(module: Any, case: Case, removed: list[int]) -> Callable[..., torch.Tensor]:
    """The experts' forward pass, a token and an expert at a time, without the `removed` neurons."""
    per_expert = module.down_proj.shape[1 if case.experts != "[gate; up]" else 2]

    def forward(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(hidden)
        for token, state in enumerate(hidden):
            for place, expert in enumerate(chosen[token].tolist()):
                if case.experts == "[gate; up]":
                    both = module.gate_up_proj[expert] @ state
                    inner = module.act_fn(both[:per_expert]) * both[per_expert:]
                else:
                    both = state @ module.gate_up_proj[expert] + module.gate_up_proj_bias[expert]
                    gate, up = both[::2].clamp(max=module.limit), both[1::2].clamp(-module.limit, module.limit)
                    inner = (up + 1) * gate * torch.sigmoid(gate * module.alpha)
                inner[[n - expert * per_expert for n in removed if n // per_expert == expert]] = 0
                if case.experts == "[gate; up]":
                    out = module.down_proj[expert] @ inner
                else:
                    out = inner @ module.down_proj[expert] + module.down_proj_bias[expert]
                found[token] += weights[token, place] * out
        return found

    return forward


@with_experts
def test_a_neuron_of_an_expert_is_removed_by_zeroing_what_it_reads_or_writes_or_both(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[architecture]
    found = [site for site in map_of(architecture, "head").sites.values() if site.name.endswith("experts")]
    assert found
    for site in found:
        assert site.neurons == 5 * 10
        module = model_of(architecture).get_submodule(site.writes.parameter.rpartition(".")[0])
        for neurons in ([], *([expert * 10 + j] for expert in range(5) for j in (0, 4, 9)), picks(50)[-1]):
            with monkeypatch.context() as patch:
                patch.setattr(module, "forward", experts_by_hand(module, case, neurons))
                silent = logits(architecture)
            for members in (site.reads, [site.writes], site.members):
                assert_removed(architecture, members, neurons, silent)
        assert (silent - logits(architecture)).abs().max() > 1e-7


def owners(neuron_map: NeuronMap) -> dict[str, list[list[tuple[str, int]]]]:
    """Parameter -> for each of its elements the neurons that name it, counted one by one."""
    found: dict[str, list[list[tuple[str, int]]]] = {}
    for site in neuron_map.sites.values():
        for member in site.members:
            shape = neuron_map.shapes[member.parameter]
            places = torch.arange(int(np.prod(shape))).view(shape)
            names = found.setdefault(member.parameter, [[] for _ in range(places.numel())])
            for neuron in range(site.neurons):
                for index in member.index[neuron].tolist():
                    for place in line(places, member.axis, index).flatten().tolist():
                        names[place].append((site.name, neuron))
    return found


@every_granularity
@every_architecture
def test_every_element_belongs_to_one_neuron_or_to_the_heads_of_a_kv_head(architecture: str, granularity: Any) -> None:
    neuron_map, group = map_of(architecture, granularity), CASES[architecture].group
    for names in owners(neuron_map).values():
        for found in names:
            if len(found) > 1:
                site = neuron_map.sites[found[0][0]]
                assert site.kind == "attention"
                dim = site.neurons // HEADS
                heads = [neuron // dim for _, neuron in found]
                assert heads == list(range(heads[0], heads[0] + group))
                assert heads[0] % group == 0
                assert len({neuron % dim for _, neuron in found}) == 1


@every_granularity
@every_architecture
def test_sites_and_rest_cover_every_parameter_once_and_leave_no_row_of_it_out(
    architecture: str, granularity: Any
) -> None:
    neuron_map, case = map_of(architecture, granularity), CASES[architecture]
    parameters = {name: tuple(p.shape) for name, p in model_of(architecture).named_parameters()}
    assert neuron_map.shapes == parameters
    covered = owners(neuron_map)
    assert sorted([*covered, *neuron_map.rest]) == sorted(parameters)
    attention = [m.parameter for site in neuron_map.sites.values() if site.kind == "attention" for m in site.reads]
    for parameter, names in covered.items():
        share = sum(map(bool, names)) / len(names)
        if granularity == "head" or parameter not in attention:
            assert share == 1
        elif case.fused:  # channels of a head share its queries and keys
            kv = HEADS // case.group
            assert share == pytest.approx(kv / (HEADS + 2 * kv))
        else:
            assert share == (0.5 if ".q_proj" in parameter else 1)


NORMS_AND_OUTPUTS = ("norm", "ln_", "embed", "lm_head", "wte", "wpe")


@every_granularity
@every_architecture
def test_no_matrix_of_a_layer_is_left_out_unsaid(architecture: str, granularity: Any) -> None:
    neuron_map = map_of(architecture, granularity)
    for name in neuron_map.rest:
        if len(neuron_map.shapes[name]) > 1 and not any(part in name for part in NORMS_AND_OUTPUTS):
            said = any(name.startswith(f"{block}.") for block in neuron_map.uncovered)
            router = ".mlp.gate." in name or ".mlp.router." in name or "shared_expert_gate" in name
            output_bias = name.endswith("down_proj_bias")
            query_or_key = granularity == "channel" and (".q_proj." in name or ".k_proj." in name)
            assert said or router or output_bias or query_or_key, name


@every_architecture
def test_what_is_not_covered_is_said_and_nothing_else(architecture: str) -> None:
    uncovered = map_of(architecture, "head").uncovered
    linear = {"model.layers.0.linear_attn": "linear attention"}
    expected = {
        "deepseek_v3": {f"model.layers.{layer}.self_attn": "latent attention" for layer in (0, 1)},
        "qwen3_next": linear,
        "qwen3_5_text": linear,
        "qwen3_5_moe_text": linear,
    }
    assert {block: why.partition(":")[0] for block, why in uncovered.items()} == expected.get(architecture, {})


def test_the_language_model_inside_another_is_mapped_and_the_rest_of_it_is_said_not_to_be() -> None:
    vision = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    text = {**tiny.CONFIGS["gemma3_text"], "model_type": "gemma3_text"}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    found = NeuronMap.of(config)
    alone = map_of("gemma3_text", "head")
    assert [site.neurons for site in found.sites.values()] == [site.neurons for site in alone.sites.values()]
    assert found.sites["layers.0.mlp"].module == "model.language_model.layers.0.mlp.down_proj"
    assert found.uncovered.keys() == {"model.vision_tower"}


def test_every_tiny_architecture_has_a_case() -> None:
    assert CASES.keys() == tiny.CONFIGS.keys()


@with_experts
def test_freezing_a_neuron_of_an_expert_marks_its_elements_alone(architecture: str) -> None:
    none = NeuronMask.none(map_of(architecture, "head"))
    third_of_expert_2 = np.arange(50) == 2 * 10 + 3
    mask = NeuronMask({**none.bits, "layers.1.mlp.experts": third_of_expert_2}, none.config)
    dense = mask.dense(model_of(architecture))
    expected = reference.dense(model_of(architecture), mask)
    for name, where in dense.items():
        assert torch.equal(where, expected[name])
        assert where[2].any()
        assert not where[[0, 1, 3, 4]].any()
    assert len(dense) == (3 if architecture == "gpt_oss" else 2)
