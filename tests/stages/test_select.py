"""`neurofreeze select` with every strategy and method, and its checks of the choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.mask import NeuronMask
from neurofreeze.strategies import STRATEGIES

from .runs import neurofreeze

# What a strategy cannot guess, and thresholds low enough for a model with random weights.
NEEDS: dict[str, list[str]] = {
    "safe_layers": ["strategy.options.first=1", "strategy.options.last=1"],
    "contrast": ["method.threshold=0.3"],
    "sn_tune": ["method.threshold=0.2"],
    "probe": ["method.threshold=0.5"],
}


def select(model: Path, folder: Path, strategy: str, *overrides: str) -> int:
    needs = [f"strategy.options.reference={model}"] if strategy == "change" else NEEDS.get(strategy, [])
    return neurofreeze("select", model, folder, f"strategy={strategy}", *needs, *overrides)


def result(folder: Path, stage: str = "select") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stages" / f"{stage}.json").read_text(encoding="utf-8"))["result"]
    return found


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "change"])
def test_every_strategy_leaves_a_mask_and_its_random_control(
    strategy: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert select(tiny_checkpoint, tmp_path, strategy) == 0
    mask, random = (NeuronMask.from_pretrained(tmp_path / "selection" / arm) for arm in ("safety", "random"))
    assert 0 < mask.count < mask.total
    assert mask.config.strategy["name"] == strategy
    assert mask.config.fingerprint is not None
    assert mask.config.calibration.keys() == {"safety", "utility"}
    for site, bits in mask.bits.items():
        assert bits.sum() == random.bits[site].sum()
    assert result(tmp_path)["neurons"] == mask.count


def test_a_checkpoint_compared_with_itself_has_changed_nowhere(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select(tiny_checkpoint, tmp_path, "change", "method=above") == 2
    assert "strategy=change chooses no neuron" in capsys.readouterr().err


@pytest.mark.parametrize("per", ["kind", "layer", "site", "model"])
def test_method_top_takes_the_fraction_of_each_group(per: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert select(tiny_checkpoint, tmp_path, "wifv", "method=top", f"method.per={per}", "fraction=0.3") == 0
    mask = NeuronMask.from_pretrained(tmp_path / "selection" / "safety")
    assert mask.config.strategy["per"] == per
    kinds = [sum(int(b.sum()) for name, b in mask.bits.items() if name.endswith(kind)) for kind in ("mlp", "attention")]
    if per == "kind":
        assert kinds == [round(0.3 * 140), round(0.3 * 12)]
    if per == "site":
        assert [int(bits.sum()) for bits in mask.bits.values()] == [2, 21, 2, 21]
    if per == "model":
        assert sum(kinds) == round(0.3 * 152)


def test_method_difference_leaves_out_what_utility_needs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name, method in (("top", "top"), ("less", "difference")):
        assert select(tiny_checkpoint, tmp_path / name, "wanda", f"method={method}", "fraction=0.3") == 0
    top, less = (NeuronMask.from_pretrained(tmp_path / name / "selection" / "safety") for name in ("top", "less"))
    assert 0 < less.count < top.count
    assert (less - top).count == 0


@pytest.mark.parametrize(("strategy", "why"), [("contrast", "contrasts the two itself"), ("random", "reads no data")])
def test_ssah_needs_scores_on_each_set(
    strategy: str, why: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select(tiny_checkpoint, tmp_path, strategy, "method=ssah") == 2
    assert why in capsys.readouterr().err


def test_a_threshold_that_nothing_exceeds_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select(tiny_checkpoint, tmp_path, "random", "method=above", "method.threshold=2") == 2
    assert "strategy=random chooses no neuron" in capsys.readouterr().err


def test_validation_prunes_the_choice_and_random_ones(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("validation.mode=prune", "validation.draws=2", "validation.splits=1")
    assert select(tiny_checkpoint, tmp_path, "wifv", *overrides) == 0
    pruned = result(tmp_path, "validate-prune")["pruned"]
    assert list(pruned) == ["whole", "chosen", "random 0", "random 1"]
    assert len({tuple(found["margins"]) for found in pruned.values()}) == 4
    assert all(len(found["margins"]) == 4 for found in pruned.values())
    (overlap,) = result(tmp_path, "validate-stability")["overlaps"]
    assert 0 < overlap["jaccard"] <= 1
    printed = capsys.readouterr().out
    assert "refusal margin falls by" in printed
    assert "choices on halves of the calibration sets overlap by" in printed
    assert select(tiny_checkpoint, tmp_path, "wifv", *overrides) == 0
    assert "validate-prune: complete, reused" in capsys.readouterr().out


def test_a_report_is_written_for_other_methods_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert neurofreeze("run", tiny_checkpoint, tmp_path, "strategy=contrast", "method=top", "arms=[safety]") == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "contrast" in page
    assert "ESU" not in page
