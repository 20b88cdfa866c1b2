"""SSAH's four groups and the freezing rule, against a slow transcription in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from neurofreeze.errors import ConfigError, MaskError
from neurofreeze.methods.ssah import (
    CU,
    ESU,
    EUU,
    GROUPS,
    RU,
    Groups,
    Ratios,
    freeze_all_but,
    freeze_all_complex,
    freeze_mask,
    freeze_top_complex,
    group,
)
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import NeuronScores
from tests import tiny

MAP = NeuronMap.of(tiny.config("llama"))  # 2 layers of 6 heads and 70 MLP neurons
LARGE = NeuronMap.of(tiny.config("llama", intermediate_size=4000, num_attention_heads=6))
RATIOS = Ratios(exclusive_safety=0.1, exclusive_utility=0.2, redundant=0.25)
Neuron = tuple[str, int]  # site, index


def scores(seed: int, decimals: int = 6) -> NeuronScores:
    """Random scores; few decimals make ties."""
    rng = np.random.default_rng(seed)
    values = {n: rng.normal(size=s.neurons).round(decimals).astype(np.float32) for n, s in MAP.sites.items()}
    return NeuronScores(MAP, values, {"name": "test"})


def neurons(kind: str) -> list[Neuron]:
    return [(f"layers.{layer}.{kind}", i) for layer in range(2) for i in range(6 if kind == "attention" else 70)]


def slow_groups(safety: NeuronScores, utility: NeuronScores, ratios: Ratios) -> dict[Neuron, str]:
    """Sort, take, remove; sort, take, remove; ..."""
    groups = {}
    for kind in ("attention", "mlp"):
        i_s = {n: safety.values[n[0]][n[1]] for n in neurons(kind)}
        i_u = {n: utility.values[n[0]][n[1]] for n in neurons(kind)}
        left = neurons(kind)
        total = len(left)
        for name, ratio, order in (
            ("ESU", ratios.exclusive_safety, {n: -(i_s[n] - i_u[n]) for n in left}),
            ("EUU", ratios.exclusive_utility, {n: i_s[n] - i_u[n] for n in left}),
            ("RU", ratios.redundant, {n: i_s[n] + i_u[n] for n in left}),
        ):
            taken = sorted(left, key=order.__getitem__)[: round(ratio * total)]
            groups |= dict.fromkeys(taken, name)
            left = [n for n in left if n not in taken]
        groups |= dict.fromkeys(left, "CU")
    return groups


def slow_frozen(safety: NeuronScores, utility: NeuronScores, ratios: Ratios, fraction: float) -> set[Neuron]:
    groups, frozen = slow_groups(safety, utility, ratios), set()
    for kind in ("attention", "mlp"):
        i_s = {n: safety.values[n[0]][n[1]] for n in neurons(kind)}
        i_u = {n: utility.values[n[0]][n[1]] for n in neurons(kind)}
        exclusive = sorted((n for n in i_s if groups[n] == "ESU"), key=lambda n: -(i_s[n] - i_u[n]))
        complex_ = sorted((n for n in i_s if groups[n] == "CU"), key=lambda n: -i_s[n])
        frozen |= set([*exclusive, *complex_][: round(fraction * len(i_s))])
    return frozen


def named(groups: Groups) -> dict[Neuron, str]:
    return {(site, i): GROUPS[code] for site, codes in groups.codes.items() for i, code in enumerate(codes)}


def chosen(bits: dict[str, np.ndarray]) -> set[Neuron]:
    return {(site, int(i)) for site, found in bits.items() for i in np.flatnonzero(found)}


@pytest.mark.parametrize("decimals", [6, 1])
@pytest.mark.parametrize("ratios", [RATIOS, Ratios(), Ratios(0, 0, 0), Ratios(0.3, 0.3, 0.39)])
def test_groups_are_those_of_the_transcription(ratios: Ratios, decimals: int) -> None:
    safety, utility = scores(1, decimals), scores(2, decimals)
    assert named(group(safety, utility, ratios)) == slow_groups(safety, utility, ratios)


def test_every_neuron_is_in_exactly_one_group() -> None:
    groups = group(scores(1), scores(2), RATIOS)
    assert {name: len(codes) for name, codes in groups.codes.items()} == {
        name: site.neurons for name, site in MAP.sites.items()
    }
    masks = [groups.mask(code) for code in (RU, EUU, CU, ESU)]
    assert sum(mask.count for mask in masks) == MAP.total
    union = masks[0] | masks[1] | masks[2] | masks[3]
    assert union.count == MAP.total


@pytest.mark.parametrize(("kind", "total"), [("attention", 12), ("mlp", 140)])
def test_group_sizes_are_the_ratios_of_each_kind(kind: str, total: int) -> None:
    codes = group(scores(1), scores(2), RATIOS).codes
    joined = np.concatenate([codes[f"layers.{layer}.{kind}"] for layer in range(2)])
    sizes = {code: int((joined == code).sum()) for code in (ESU, EUU, RU)}
    assert sizes == {ESU: round(0.1 * total), EUU: round(0.2 * total), RU: round(0.25 * total)}


def test_a_mask_of_a_group_says_which() -> None:
    mask = group(scores(1), scores(2), RATIOS).mask(ESU)
    assert mask.config.strategy == {"name": "ssah", "group": "ESU"}
    assert mask.count == 1 + 14


@pytest.mark.parametrize("decimals", [6, 1])
@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.15, 0.4, 0.55])
def test_frozen_neurons_are_those_of_the_transcription(fraction: float, decimals: int) -> None:
    safety, utility = scores(1, decimals), scores(2, decimals)
    mask = freeze_mask(group(safety, utility, RATIOS), safety, utility, fraction)
    assert chosen(mask.bits) == slow_frozen(safety, utility, RATIOS, fraction)
    assert mask.count == round(fraction * 12) + round(fraction * 140)


def test_exclusive_units_come_before_complex_ones() -> None:
    safety, utility = scores(1), scores(2)
    groups = group(safety, utility, RATIOS)
    mask = freeze_mask(groups, safety, utility, 0.3)
    exclusive, complex_ = groups.mask(ESU), groups.mask(CU)
    assert (exclusive - mask).count == 0
    assert 0 < (mask & complex_).count < complex_.count
    assert (mask - exclusive - complex_).count == 0
    low = min(safety.values[site][i] for site, i in chosen((mask & complex_).bits) if site.endswith("mlp"))
    high = max(safety.values[site][i] for site, i in chosen((complex_ - mask).bits) if site.endswith("mlp"))
    assert low > high


def test_a_fraction_below_the_exclusive_share_cuts_exclusive_units() -> None:
    safety, utility = scores(1), scores(2)
    groups = group(safety, utility, RATIOS)
    mask = freeze_mask(groups, safety, utility, 0.05)
    exclusive = groups.mask(ESU)
    assert mask.count < exclusive.count
    assert (mask - exclusive).count == 0
    difference = (safety - utility).values
    low = min(difference[site][i] for site, i in chosen(mask.bits) if site.endswith("mlp"))
    high = max(difference[site][i] for site, i in chosen((exclusive - mask).bits) if site.endswith("mlp"))
    assert low > high


def test_a_larger_fraction_keeps_what_a_smaller_one_froze() -> None:
    safety, utility = scores(1), scores(2)
    groups = group(safety, utility, RATIOS)
    small, large = (freeze_mask(groups, safety, utility, fraction) for fraction in (0.1, 0.3))
    assert (small - large).count == 0


def test_more_than_exclusive_and_complex_units_hold_is_refused() -> None:
    safety, utility = scores(1), scores(2)
    with pytest.raises(ConfigError, match=r"^fraction 0\.\d+ asks for 84 mlp neurons, but ESU and CU hold 77"):
        freeze_mask(group(safety, utility, RATIOS), safety, utility, 0.6)


def test_all_of_exclusive_and_complex_units_can_be_frozen() -> None:
    safety, utility = scores(1), scores(2)
    groups = group(safety, utility, Ratios(0.1, 0.25, 0.25))
    mask = freeze_mask(groups, safety, utility, 0.5)
    assert mask == groups.mask(ESU) | groups.mask(CU)


@pytest.mark.parametrize("decimals", [6, 1])
@pytest.mark.parametrize("top", [0.06, 0.3])
def test_row_one_is_exclusive_units_and_the_top_of_complex_ones(top: float, decimals: int) -> None:
    safety, utility = scores(1, decimals), scores(2, decimals)
    mask = freeze_top_complex(group(safety, utility, RATIOS), safety, utility, top)
    named_groups, expected = slow_groups(safety, utility, RATIOS), set()
    for kind, count in (("attention", 12), ("mlp", 140)):
        complex_ = [n for n in neurons(kind) if named_groups[n] == "CU"]
        first = sorted(complex_, key=lambda n: -safety.values[n[0]][n[1]])[: round(top * count)]
        expected |= {*first, *(n for n in neurons(kind) if named_groups[n] == "ESU")}
    assert chosen(mask.bits) == expected
    assert mask.count == 1 + 14 + round(top * 12) + round(top * 140)
    assert {key: mask.config.strategy[key] for key in ("freeze", "top_cu")} == {"freeze": "esu_top_cu", "top_cu": top}


def test_row_two_is_all_but_utility_and_redundant_units() -> None:
    safety, utility = scores(1), scores(2)
    groups = group(safety, utility, RATIOS)
    mask = freeze_all_complex(groups, safety, utility)
    assert mask == ~(groups.mask(EUU) | groups.mask(RU))
    assert mask.count == 12 - 2 - 3 + 140 - 28 - 35
    assert mask.config.strategy["freeze"] == "esu_all_cu"


@pytest.mark.parametrize(("code", "name"), [(RU, "all_but_ru"), (EUU, "all_but_euu")])
def test_all_but_one_group_is_frozen(code: int, name: str) -> None:
    safety, utility = scores(1), scores(2)
    groups = group(safety, utility, RATIOS)
    mask = freeze_all_but(groups, safety, code)
    assert {site: bits.tolist() for site, bits in mask.bits.items()} == {
        site: (codes != code).tolist() for site, codes in groups.codes.items()
    }
    assert mask.config.strategy["freeze"] == name


def test_with_the_papers_shares_the_rows_are_as_large_as_in_the_paper() -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=site.neurons).astype(np.float32) for name, site in LARGE.sites.items()}
    safety, utility = NeuronScores(LARGE, values, {}), NeuronScores(LARGE, {n: v[::-1] for n, v in values.items()}, {})
    groups = group(safety, utility, Ratios(0.015, 0.14, 0.14))
    assert freeze_top_complex(groups, safety, utility, 0.06).fraction == pytest.approx(0.075, abs=0.001)
    assert freeze_all_complex(groups, safety, utility).fraction == pytest.approx(0.72, abs=0.001)


def test_more_of_the_complex_units_than_there_are_is_refused() -> None:
    safety, utility = scores(1), scores(2)
    with pytest.raises(ConfigError, match=r"asks for 7 attention neurons of CU, which holds 6"):
        freeze_top_complex(group(safety, utility, RATIOS), safety, utility, 0.6)


@pytest.mark.parametrize("fraction", [0, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    safety, utility = scores(1), scores(2)
    with pytest.raises(MaskError, match="expected a number in"):
        freeze_mask(group(safety, utility, RATIOS), safety, utility, fraction)


def test_the_mask_records_the_method_and_the_difference_of_scores() -> None:
    safety, utility = scores(1), scores(2)
    mask = freeze_mask(group(safety, utility, RATIOS), safety, utility, 0.2)
    ratios = {"exclusive_safety": 0.1, "exclusive_utility": 0.2, "redundant": 0.25}
    assert mask.config.strategy == {"name": "test", "method": "ssah", "fraction": 0.2, "ratios": ratios}
    assert mask.scores is not None
    np.testing.assert_array_equal(mask.scores["layers.1.mlp"], (safety - utility).values["layers.1.mlp"])


@pytest.mark.parametrize("name", ["exclusive_safety", "exclusive_utility", "redundant"])
@pytest.mark.parametrize("value", [-0.01, 1.0, float("nan")])
def test_a_ratio_outside_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"method\.ratios\.{name} is"):
        Ratios(**{name: value})


def test_ratios_that_leave_nothing_for_complex_units_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"add up to 1\.000; expected less than 1"):
        Ratios(0.5, 0.25, 0.25)
