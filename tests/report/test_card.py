"""The README.md of a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from neurofreeze.mask import MaskConfig, NeuronMask
from neurofreeze.report.card import shade, top_neurons
from neurofreeze.report.templates import render


def mask(**fields: Any) -> NeuronMask:
    neurons = {f"layers.{layer}.{kind}": n for layer in range(2) for kind, n in (("attention", 4), ("mlp", 1500))}
    bits = {name: np.arange(n) < n // 4 for name, n in neurons.items()}
    return NeuronMask(bits, MaskConfig("llama", "head", "ab" * 32, neurons, **fields))


def front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def test_a_card_with_everything() -> None:
    card = render(
        "mask_card.md",
        mask=mask(
            model="org/tiny-llama", revision="abc123", fingerprint="f0f0",
            strategy={"name": "wifv", "fraction": 0.25, "of": [{"name": "a|b"}]},
            calibration={"harmful": "d1gest"},
        ),
    )  # fmt: skip
    matter = front_matter(card)
    assert matter["library_name"] == "neurofreeze"
    assert matter["base_model"] == "org/tiny-llama"
    assert "neuron-mask" in matter["tags"]
    for expected in (
        "752 of\n3,008 neurons", "| 0 | 375 / 1,500 | ██ | 1 / 4 | ██ |", "| 1 | 375 / 1,500 | ██ | 1 / 4 | ██ |",
        "`abc123`", "`f0f0`",
        "| `fraction` | `0.25` |", "| `harmful` | `d1gest` |", r"a\|b", "nf.NeuronMask.from_pretrained(",
        "nf.freeze(model, optimizer, mask)", "determined attacker",
    ):  # fmt: skip
        assert expected in card


def test_a_card_with_nothing_recorded() -> None:
    card = render("mask_card.md", mask=mask())
    assert "base_model" not in front_matter(card)
    assert "no strategy is recorded" in card
    assert "No calibration data is recorded" in card


def test_a_local_path_is_not_claimed_to_be_a_hub_model() -> None:
    card = render("mask_card.md", mask=mask(model="/home/me/models/tiny: x\n---"))
    assert "base_model" not in front_matter(card)
    assert "`/home/me/models/tiny: x ---`" in card


def test_sites_with_names_of_their_own() -> None:
    neurons = {"block_a": 3, "block_b": 2}
    own = NeuronMask(
        {"block_a": np.ones(3, bool), "block_b": np.zeros(2, bool)}, MaskConfig("own", "head", "", neurons)
    )
    card = render("mask_card.md", mask=own)
    assert "| block_a | 3 / 3 | ████████ | - |  |" in card


def test_the_highest_scores_among_the_chosen_are_listed_kind_by_kind() -> None:
    plain = mask()
    rng = np.random.default_rng(0)
    scores = {name: rng.normal(size=len(bits)).astype(np.float32) for name, bits in plain.bits.items()}
    scores["layers.1.mlp"][:2] = [9.0, 9.0]
    scores["layers.0.mlp"][1499] = 99.0  # not chosen
    scored = NeuronMask(plain.bits, plain.config, scores)
    rows = top_neurons(scored, count=3)
    assert rows[:2] == [("layers.1.mlp", 0, "9"), ("layers.1.mlp", 1, "9")]
    everything = sorted(
        -float(scores[name][j]) for name in plain.bits if "mlp" in name for j in plain.bits[name].nonzero()[0]
    )
    assert rows[2][2] == f"{-everything[2]:.4g}"
    assert [name for name, _, _ in rows[3:]] == sorted(
        (name for name in plain.bits if "att" in name), key=lambda name: -scores[name][0]
    )
    assert "| `layers.1.mlp` | 1 | 9 |" in render("mask_card.md", mask=scored)
    assert "Highest scores" not in render("mask_card.md", mask=plain)


def test_a_bar_shows_that_any_neuron_is_chosen() -> None:
    assert [shade(cell) for cell in ("-", "0 / 8", "1 / 1,500", "8 / 8", "5 / 64")] == ["", "", "▏", "█" * 8, "▋"]
