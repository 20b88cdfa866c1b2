"""Strategies on mixtures of experts against their formulas, on activations computed here from the experts' weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from neurofreeze.errors import DataError
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import STRATEGIES, WIFV
from neurofreeze.strategies.by_expert import ByExpert
from neurofreeze.strategies.change import Change
from neurofreeze.strategies.contrast import Contrast
from neurofreeze.strategies.margin import Margin
from neurofreeze.strategies.observing import Point, Tokens, observe
from neurofreeze.strategies.probe import Probe
from neurofreeze.strategies.sn_tune import SNTune
from neurofreeze.strategies.statistics import RunningMoments
from neurofreeze.strategies.wanda import Wanda
from tests import tiny
from tests.strategies.reference import PARTS, left_padded
from tests.strategies.scoring import Rows, batched, conversations, score
from tests.strategies.test_margin import ROWS as OPENINGS
from tests.strategies.test_margin import margin
from tests.strategies.test_probe import fitted

ROWS = {role: conversations(7, seed) for seed, role in enumerate(("safety", "utility"))}
ROWS = {role: [(ids, 1 + index % 3) for index, (ids, _) in enumerate(rows)] for role, rows in ROWS.items()}
SETS = {role: batched(3, rows) for role, rows in ROWS.items()}
# Two tokens with two experts each: of five experts at least one gets none.
SHORT: Rows = [([5, 9], 1)]
EXPERTS, NEURONS = 5, 10

GATE_UP = {"mixtral": "mlp.experts", "qwen3_moe": "mlp.experts", "deepseek_v3": "mlp.experts", "gpt_oss": "mlp.experts"}
architectures = pytest.mark.parametrize("architecture", GATE_UP)


class Seen(NamedTuple):
    """Of one conversation and one expert: which of its tokens reached it, and what flowed, [tokens, ...]."""

    tokens: np.ndarray
    inputs: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    activations: np.ndarray


def layers(architecture: str) -> list[int]:
    return [1] if architecture in ("qwen3_moe", "deepseek_v3") else [0, 1]


def matrices(model: Any, architecture: str, layer: int, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate and up [neurons, hidden], down [hidden, neurons] of an expert."""
    experts = model.model.layers[layer].mlp.experts
    gate_up, down = experts.gate_up_proj[expert].detach(), experts.down_proj[expert].detach()
    if architecture == "gpt_oss":
        return gate_up[:, ::2].T, gate_up[:, 1::2].T, down.T
    return gate_up[:NEURONS], gate_up[NEURONS:], down


def seen(model: Any, architecture: str, layer: int, rows: Rows) -> list[list[Seen]]:
    """By conversation, then expert."""
    experts, found = model.model.layers[layer].mlp.experts, []
    handle = experts.register_forward_pre_hook(lambda _, args: found.append(args[:2]))
    with torch.no_grad():
        for ids, _ in rows:
            model(input_ids=torch.tensor([ids]))
    handle.remove()
    conversations = []
    for hidden, routed in found:
        conversations.append([])
        for expert in range(EXPERTS):
            tokens = (routed == expert).any(1).nonzero()[:, 0]
            x = hidden[tokens]
            gate, up = (x @ matrix.T for matrix in matrices(model, architecture, layer, expert)[:2])
            if architecture == "gpt_oss":
                bias = experts.gate_up_proj_bias[expert].detach()
                gate, up = gate + bias[::2], up + bias[1::2]
                low, high = gate.clamp(max=7), up.clamp(-7, 7)
                a = (high + 1) * low * torch.sigmoid(low * 1.702)
            else:
                a = torch.nn.functional.silu(gate) * up
            conversations[-1].append(Seen(*(value.numpy() for value in (tokens, x, gate, up, a))))
    return conversations


def within(found: Seen, part: str, start: int, length: int) -> np.ndarray:
    """Which of an expert's tokens are in the prompt, the response, or the whole: bool [tokens]."""
    return np.isin(found.tokens, np.arange(length)[PARTS[part](start)])


def gathered(
    model: Any, architecture: str, layer: int, rows: Rows, what: str = "activations", part: str = "all"
) -> list[list[np.ndarray]]:
    """By expert, then conversation: [tokens, channels]."""
    conversations = seen(model, architecture, layer, rows)
    return [
        [
            getattr(each[expert], what)[within(each[expert], part, start, len(ids))]
            for each, (ids, start) in zip(conversations, rows, strict=True)
        ]
        for expert in range(EXPERTS)
    ]


def assert_scores(
    found: Mapping[str, np.ndarray], architecture: str, expected: Callable[[int], np.ndarray], **tolerance: float
) -> None:
    for layer in layers(architecture):
        values = found[f"layers.{layer}.mlp.experts"]
        assert values.shape == (EXPERTS * NEURONS,)
        np.testing.assert_allclose(values, expected(layer).ravel(), **{"rtol": 2e-5, "atol": 1e-6, **tolerance})


@architectures
def test_wifv(architecture: str) -> None:
    model = tiny.model(architecture)

    def expected(layer: int) -> np.ndarray:
        found = gathered(model, architecture, layer, ROWS["safety"])
        tokens = [np.concatenate(own) for own in found]
        variances = np.stack([x.var(axis=0, ddof=1) if len(x) > 1 else np.zeros(NEURONS) for x in tokens])
        downs = [matrices(model, architecture, layer, expert)[2].numpy() for expert in range(EXPERTS)]
        result = variances * np.stack([(down**2).sum(axis=0) for down in downs])
        return (result - result.mean()) / result.std()

    assert_scores(score(WIFV(), model, SETS["safety"]).values, architecture, expected)


@architectures
def test_wanda(architecture: str) -> None:
    model = tiny.model(architecture)

    def expected(layer: int) -> np.ndarray:
        norms = {
            what: [
                np.linalg.norm(np.concatenate(own), axis=0)
                for own in gathered(model, architecture, layer, ROWS["safety"], what, "response")
            ]
            for what in ("inputs", "activations")
        }
        total = []
        for expert in range(EXPERTS):
            gate, up, down = (np.abs(m.numpy()) for m in matrices(model, architecture, layer, expert))
            total.append((gate + up) @ norms["inputs"][expert] + down.sum(axis=0) * norms["activations"][expert])
        return np.stack(total)

    assert_scores(score(Wanda(), model, SETS["safety"]).values, architecture, expected)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@architectures
def test_contrast(architecture: str, pooling: Any) -> None:
    model = tiny.model(architecture)

    def expected(layer: int) -> np.ndarray:
        d, difference = [], []
        sets = [gathered(model, architecture, layer, ROWS[role], part="prompt") for role in ROWS]
        for unsafe, safe in zip(*sets, strict=True):
            u, s = (np.array([getattr(x, pooling)(axis=0) for x in own if len(x)]) for own in (unsafe, safe))
            if min(len(u), len(s)) < 2:
                d.append(np.zeros(NEURONS))
                difference.append(np.full(NEURONS, np.nan))
                continue
            difference.append(u.mean(0) - s.mean(0))
            variance = (u.var(0, ddof=1) * (len(u) - 1) + s.var(0, ddof=1) * (len(s) - 1)) / (len(u) + len(s) - 2)
            d.append(difference[-1] / np.sqrt(variance))
        z = (np.array(difference) - np.nanmean(difference)) / np.nanstd(difference)
        z = np.where(np.array(difference) > 0, z, np.minimum(z, 0))
        return np.maximum(np.array(d) / 2, np.nan_to_num(z) / 2)

    assert_scores(score(Contrast(pooling=pooling), model, SETS).values, architecture, expected)


@architectures
def test_probe(architecture: str) -> None:
    model = tiny.model(architecture)

    def expected(layer: int) -> np.ndarray:
        total = []
        for expert in range(EXPERTS):
            scores = []
            for what in ("gate", "up"):
                sets = [gathered(model, architecture, layer, ROWS[role], what, "prompt")[expert] for role in ROWS]
                harmful, ordinary = ([x.max(axis=0) for x in own if len(x)] for own in sets)
                if not harmful or not ordinary:
                    scores.append(np.zeros(NEURONS))
                    continue
                y = np.repeat([1.0, 0.0], [len(harmful), len(ordinary)])
                w = fitted(np.array(harmful + ordinary), y, 40, 1e-3, 1e-3)
                scores.append(np.where(w > 0, (w - w.mean()) / w.std(), np.minimum((w - w.mean()) / w.std(), w)))
            total.append(np.max(scores, axis=0))
        return np.stack(total)

    assert_scores(score(Probe(epochs=40), model, SETS).values, architecture, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@architectures
def test_sn_tune(architecture: str, pooling: Any) -> None:
    model = tiny.model(architecture)
    found = score(SNTune(k=0.3, pooling=pooling, subtract_foundation=False), model, SETS).values

    def expected(layer: int) -> np.ndarray:
        counts = np.zeros(EXPERTS * NEURONS)
        experts = gathered(model, architecture, layer, ROWS["safety"], part="prompt")
        for prompt in range(len(ROWS["safety"])):
            magnitudes: dict[int, float] = {}
            for expert, own in enumerate(experts):
                if len(own[prompt]):
                    pooled = getattr(np.abs(own[prompt]), pooling)(axis=0)
                    magnitudes |= {expert * NEURONS + j: value for j, value in enumerate(pooled)}
            counts[sorted(magnitudes, key=lambda j: -magnitudes[j])[:15]] += 1
        return counts / len(ROWS["safety"])

    assert_scores(found, architecture, expected)


@architectures
def test_margin(architecture: str) -> None:
    # Scaling a neuron's column scales its activation: sum_n a_n dM/da_n is the column times its gradient.
    model = tiny.model(architecture)
    margin(model).backward()
    axis = 2 if architecture == "gpt_oss" else 1

    def expected(layer: int) -> np.ndarray:
        down = model.model.layers[layer].mlp.experts.down_proj
        return (down.detach() * down.grad).sum(axis).numpy()

    values = {layer: expected(layer) for layer in layers(architecture)}
    model.zero_grad()
    found = score(Margin(), model, batched(6, OPENINGS)).values
    assert_scores(found, architecture, values.__getitem__, atol=1e-7)


@architectures
def test_change(architecture: str) -> None:
    model, reference = (tiny.model(architecture, seed=seed) for seed in (0, 1))

    def expected(layer: int) -> np.ndarray:
        total = []
        new, old = (seen(m, architecture, layer, ROWS["safety"]) for m in (model, reference))
        for expert in range(EXPERTS):
            squares = []
            for a, b, (ids, start) in zip(new, old, ROWS["safety"], strict=True):
                for token in range(start, len(ids)):
                    at, was = (np.flatnonzero(own[expert].tokens == token) for own in (a, b))
                    if len(at) and len(was):
                        squares.append((a[expert].activations[at[0]] - b[expert].activations[was[0]]) ** 2)
            total.append(np.sqrt(np.mean(squares, axis=0)) if squares else np.zeros(NEURONS))
        return np.stack(total)

    assert_scores(score(Change(reference), model, SETS["safety"]).values, architecture, expected)


STRATEGIES_WITH_ACTIVATIONS: list[Callable[[], Any]] = [WIFV, Wanda, Contrast, lambda: Probe(epochs=5), SNTune]


@pytest.mark.parametrize("make", STRATEGIES_WITH_ACTIVATIONS)
@pytest.mark.parametrize("move", [list, left_padded])
def test_batch_size_and_padding_do_not_matter(make: Callable[[], Any], move: Callable[[Any], Any]) -> None:
    model = tiny.model("mixtral")
    expected = score(make(), model, {role: batched(1, rows) for role, rows in ROWS.items()}).values
    found = score(make(), model, {role: move(batched(7, rows)) for role, rows in ROWS.items()}).values
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def unreached(model: Any, rows: Rows) -> np.ndarray:
    """Neurons of layer 0 whose expert gets no token: bool [experts * neurons]."""
    found = [not any(len(x) for x in own) for own in gathered(model, "mixtral", 0, rows)]
    assert any(found)
    return np.repeat(found, NEURONS)


def test_a_neuron_whose_expert_no_token_reached_has_no_score() -> None:
    model, site = tiny.model("mixtral"), "layers.0.mlp.experts"
    nobody, batches = unreached(model, SHORT), batched(1, SHORT)
    one_each = {"safety": batches, "utility": batches}
    found = {
        "wifv": score(WIFV(standardize=False), model, batches),
        "wanda": score(Wanda("all"), model, batches),
        "probe": score(Probe(epochs=5), model, one_each),
        "sn_tune": score(SNTune(0.9, positions="all", subtract_foundation=False), model, batches),
        "change": score(Change(tiny.model("mixtral", seed=1)), model, batches),
        "margin": score(Margin(["a"], ["b"]), model, batched(2, [([5, 9], 1), ([5, 9], 1)])),
        "snip": score(STRATEGIES["snip"](), model, batches),
    }
    for name, scores in found.items():
        assert not scores.values[site][nobody].any(), name
    for name in ("wanda", "snip", "sn_tune"):
        assert found[name].values[site][~nobody].any(), name


def test_contrast_leaves_experts_with_too_few_prompts_out_of_its_mean() -> None:
    model = tiny.model("mixtral")
    few = {role: batched(2, rows[:4]) for role, rows in ROWS.items()}
    found = score(Contrast("sas"), model, few).values["layers.0.mlp.experts"].reshape(EXPERTS, NEURONS)
    sets = [gathered(model, "mixtral", 0, ROWS[role][:4], part="prompt") for role in ROWS]
    enough = [all(sum(len(x) > 0 for x in own) > 1 for own in pair) for pair in zip(*sets, strict=True)]
    assert 0 < sum(enough) < EXPERTS
    assert not found[np.logical_not(enough)].any()
    assert (found[enough] != 0).any()


def test_contrast_says_that_no_expert_has_two_prompts() -> None:
    few = {role: batched(2, rows[:2]) for role, rows in ROWS.items()}
    with pytest.raises(
        DataError, match=r"utility set has 1 prompts .* reach the same expert of layers\.1\.mlp\.experts"
    ):
        score(Contrast(), tiny.model("mixtral"), few)


def test_statistics_by_expert_are_restored() -> None:
    model = tiny.model("mixtral")
    first, second = (
        {Point("model.layers.0.mlp.experts.down_proj", "input"): ByExpert(RunningMoments, EXPERTS)} for _ in range(2)
    )
    observe(model, SETS["safety"], [first])
    (one,), (two,) = first.values(), second.values()
    two.load_state_dict(one.state_dict())
    assert [own.count for own in two.each] == [own.count for own in one.each]
    for a, b in zip(one.each, two.each, strict=True):
        assert torch.equal(a.variance(), b.variance())


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_tokens_of_an_expert_are_pooled_by_the_row_they_are_from(pooling: Any) -> None:
    values = torch.arange(12, dtype=torch.float64).view(6, 2)
    attention = torch.tensor([1, 1, 0, 1, 1, 1]).bool()
    tokens = Tokens(values, attention, ~attention, torch.tensor([0, 0, 1, 2, 2, 2]), (6,))
    rows = [values[:2], values[3:]]  # row 1 has only padding
    expected = torch.stack([row.mean(0) if pooling == "mean" else row.amax(0) for row in rows])
    assert torch.equal(tokens.pooled(pooling), expected)


def test_every_strategy_scores_the_experts_and_the_shared_ones() -> None:
    model = tiny.model("deepseek_v3")
    mlp = {name for name, site in NeuronMap.of(model).sites.items() if site.kind == "mlp"}
    assert mlp == {"layers.0.mlp", "layers.1.mlp.shared", "layers.1.mlp.experts"}
    for make in STRATEGIES_WITH_ACTIVATIONS:
        assert mlp <= score(make(), model, SETS).values.keys()
