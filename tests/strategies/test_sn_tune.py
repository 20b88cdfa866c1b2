"""SN-Tune against the naive sets: top k of each prompt, intersected over prompts, minus the foundation set."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.data import read
from neurofreeze.errors import ConfigError, DataError
from neurofreeze.models.load import load_model
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import select
from neurofreeze.strategies.observing import observe
from neurofreeze.strategies.sn_tune import SNTune
from tests import tiny
from tests.strategies.reference import conf, inputs, left_padded
from tests.strategies.scoring import batched, conversations, score
from tests.strategies.test_wifv import MODULES

SITES = [f"layers.{layer}.{kind}" for layer in range(2) for kind in ("attention", "mlp")]
GROUPS = {
    "site": [[name] for name in SITES],
    "layer": [SITES[:2], SITES[2:]],
    "kind": [SITES[::2], SITES[1::2]],
    "model": [SITES],
}
ROWS = {"safety": conversations(7, 0), "utility": conversations(5, 1)}
ROWS = {role: [(ids, 1 + index % 3) for index, (ids, _) in enumerate(rows)] for role, rows in ROWS.items()}
SETS = {role: batched(3, rows) for role, rows in ROWS.items()}
EXACT = 1 - 1e-6

Neuron = tuple[str, int]


def tops(
    model: Any, role: str, k: float, per: str = "site", pooling: str = "mean", positions: str = "prompt"
) -> list[set[Neuron]]:
    """The top k neurons of every prompt."""
    patterns = MODULES["llama"][0]
    names = {f"layers.{layer}.{kind}": p.format(layer) for layer in range(2) for kind, p in patterns.items()}
    seen, found = inputs(model, names.values(), ROWS[role], positions), []
    for prompt in range(len(ROWS[role])):
        top = set()
        for group in GROUPS[per]:
            magnitudes: dict[Neuron, float] = {}
            for site in group:
                a = getattr(np.abs(seen[names[site]][prompt]), pooling)(axis=0)
                a = a.reshape(6, 6).mean(1) if site.endswith("attention") else a
                magnitudes |= {(site, j): value for j, value in enumerate(a)}
            top |= set(sorted(magnitudes, key=lambda n: -magnitudes[n])[: max(1, round(k * len(magnitudes)))])
        found.append(top)
    return found


def chosen(mask: Any) -> set[Neuron]:
    return {(name, int(j)) for name, bits in mask.bits.items() for j in np.flatnonzero(bits)}


def every(sets: list[set[Neuron]]) -> set[Neuron]:
    return reduce(set.intersection, sets)


@pytest.mark.parametrize("per", GROUPS)
def test_the_mask_is_the_intersection_minus_the_foundation(per: Any) -> None:
    model = tiny.model("llama")
    safety, foundation = (every(tops(model, role, 0.6, per)) for role in ("safety", "utility"))
    assert safety & foundation
    assert safety - foundation
    assert chosen(score(SNTune(0.6, per), model, SETS).above(EXACT)) == safety - foundation


@pytest.mark.parametrize("positions", ["prompt", "response", "all"])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_without_a_foundation_it_is_the_intersection(pooling: Any, positions: Any) -> None:
    model = tiny.model("llama")
    strategy = SNTune(0.5, pooling=pooling, positions=positions, subtract_foundation=False)
    expected = every(tops(model, "safety", 0.5, "site", pooling, positions))
    assert expected
    assert chosen(score(strategy, model, SETS["safety"]).above(EXACT)) == expected


def test_a_score_is_the_share_of_prompts_and_a_foundation_neuron_s_is_zero() -> None:
    model = tiny.model("llama")
    safety, utility = (tops(model, role, 0.4) for role in ("safety", "utility"))
    found = score(SNTune(0.4, foundation_share=0.8), model, SETS).values
    zeroed = 0
    for name, values in found.items():
        for j, value in enumerate(values):
            share = np.mean([(name, j) in top for top in safety])
            founded = sum((name, j) in top for top in utility) >= 4  # of 5
            assert value == pytest.approx(0 if founded else share, abs=1e-7)
            zeroed += founded and share > 0
    assert zeroed


def test_a_lower_threshold_relaxes_every_harmful_prompt() -> None:
    model = tiny.model("llama")
    safety, foundation = tops(model, "safety", 0.5), every(tops(model, "utility", 0.5))
    neurons = [(site, j) for site in SITES for j in range(6 if site.endswith("attention") else 70)]
    often = {neuron for neuron in neurons if sum(neuron in top for top in safety) > 5}  # of 7
    assert chosen(score(SNTune(0.5), model, SETS).above(5 / 7 + 1e-6)) == often - foundation


@pytest.mark.parametrize("per", ["site", "model"])
@pytest.mark.parametrize("size", [1, 7])
def test_batch_size_and_padding_do_not_matter(size: int, per: Any) -> None:
    model = tiny.model("llama")
    expected = score(SNTune(0.5, per), model, SETS).values
    for move in (list, left_padded):
        sets = {role: move(batched(size, rows)) for role, rows in ROWS.items()}
        for name, values in score(SNTune(0.5, per), model, sets).values.items():
            np.testing.assert_array_equal(values, expected[name])


def test_equal_activations_are_ranked_in_order() -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
        model.model.layers[1].mlp.up_proj.bias.zero_()
    strategy = SNTune(0.1, subtract_foundation=False)
    for size in (1, 7):
        found = score(strategy, model, batched(size, ROWS["safety"])).values["layers.1.mlp"]
        assert found.tolist() == [1.0] * 7 + [0.0] * 63


def test_what_ranks_exchange_adds_up() -> None:
    model = tiny.model("llama")
    neuron_map, strategy = NeuronMap.of(model), SNTune(0.5, "model")
    whole, first, second = (strategy.watch(neuron_map) for _ in range(3))
    batches = SETS["safety"]
    observe(model, batches, [whole])
    observe(model, batches[:1], [first])
    observe(model, batches[1:], [second])
    for point, statistic in first.items():
        sent = pickle.dumps(second[point])
        assert len(sent) < 2000
        statistic.merge(pickle.loads(sent))
        assert torch.equal(statistic.counts, whole[point].counts)
        assert statistic.prompts == whole[point].prompts == 7


def test_nothing_of_a_batch_is_kept() -> None:
    model = tiny.model("llama")
    statistics = SNTune(0.5, "kind").watch(NeuronMap.of(model))
    observe(model, SETS["safety"], [statistics])
    for statistic in statistics.values():
        assert not statistic.ranking.waiting
        assert len(statistic.counts) in (6, 70)


def test_the_utility_set_is_read_only_for_a_foundation(tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    model, examples = load_model(tiny_checkpoint, torch.float32), read("bundled:harmful/calibration", limit=6)
    with pytest.raises(ConfigError, match="'utility' is not given"):
        select(model, tiny_tokenizer, examples, "sn_tune")
    alone = select(model, tiny_tokenizer, examples, "sn_tune", subtract_foundation=False)
    others = read("bundled:instructions/calibration", limit=6)
    both = select(model, tiny_tokenizer, {"safety": examples, "utility": others}, "sn_tune")
    assert both.strategy["k"] == 0.15
    assert both.above(EXACT).count < alone.above(EXACT).count
    assert not (both.above(EXACT) - alone.above(EXACT)).count


def test_prompts_without_such_tokens_are_noticed() -> None:
    cut = batched(3, [(ids, len(ids)) for ids, _ in ROWS["utility"]])
    with pytest.raises(DataError, match="no prompt of the utility set has tokens at positions='response'"):
        score(SNTune(positions="response"), tiny.model("llama"), {**SETS, "utility": cut})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"k is 0; expected a number in \(0, 1\]"),
        ({"k": 1.5}, r"k is 1.5; expected a number in \(0, 1\]"),
        ({"foundation_share": 0.0}, r"foundation_share is 0.0; expected a number in \(0, 1\]"),
        ({"per": "head"}, "per is 'head'; expected one of kind, layer, site, model"),
        ({"pooling": "sum"}, "pooling is 'sum'; expected one of mean, max"),
        ({"positions": "last"}, "positions is 'last'; expected one of all, prompt, response"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(None, None, [], "sn_tune", **options)


def test_the_conf_file_lists_every_option_with_its_default() -> None:
    assert asdict(SNTune(**conf("sn_tune")["options"])) == asdict(SNTune())
    assert {"name", *conf("sn_tune")["options"]} == set(asdict(SNTune()))
    assert (conf("sn_tune")["method"], conf("sn_tune")["threshold"]) == ("above", 0.999999)
