"""`neurofreeze select` with every strategy and method, and its checks of the choice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from neurofreeze.data import read
from neurofreeze.evaluation.pruning import prune
from neurofreeze.mask import NeuronMask
from neurofreeze.methods.ssah import GROUPS
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


@pytest.mark.slow
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


def test_weights_that_were_written_anew_are_another_run_s(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_checkpoint, model)
    assert select(model, folder, "random") == select(model, folder, "random") == 0
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-2] + bytes(2))
    for command in ("select", "evaluate"):
        assert neurofreeze(command, model, folder, "strategy=random") == 1
        assert f"the weights in {model} were written anew since {folder} began" in capsys.readouterr().err
    assert select(tiny_checkpoint, folder, "random", "overwrite=true") == 0


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
    overrides = ("validate=prune", "validate.draws=2", "validate.splits=1")
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


SEARCH = ("method.search=true", "method.grid=[0.1,0.2,0.3]", "method.search_prompts=6")


@pytest.fixture
def pruned_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NeuronMask | None, list[str], list[str]]]:
    """What every call of `prune` was given: mask, harmful prompts, utility prompts."""
    calls: list[tuple[NeuronMask | None, list[str], list[str]]] = []

    def noting(model: Any, tokenizer: Any, mask: Any, harmful: Any, utility: Any, **options: Any) -> Any:
        calls.append((mask, [example.prompt for example in harmful], [example.prompt for example in utility]))
        return prune(model, tokenizer, mask, harmful, utility, **options)

    monkeypatch.setattr("neurofreeze.stages.choosing.prune", noting)
    return calls


def test_the_search_prunes_the_groups_on_calibration_prompts_only(
    tiny_checkpoint: Path, tmp_path: Path, pruned_on: list[tuple[Any, list[str], list[str]]]
) -> None:
    assert select(tiny_checkpoint, tmp_path, "wifv", *SEARCH) == 0
    (whole, *masks), harmful, utility = ([call[place] for call in pruned_on] for place in range(3))
    assert whole is None
    assert [mask.config.strategy["group"] for mask in masks] == ["ESU"] * 3 + ["EUU"] * 3 + ["RU"] * 3
    assert [mask.count for mask in masks] == [15, 30, 46] * 3
    for found, source in ((harmful, "bundled:harmful"), (utility, "bundled:instructions")):
        assert all(prompts == found[0] for prompts in found)
        assert len(set(found[0])) == 6
        assert set(found[0]) <= {example.prompt for example in read(f"{source}/calibration")}
        assert not set(found[0]) & {example.prompt for example in read(f"{source}/evaluation", responses=False)}
    # What was found is what was frozen by, and the groups are those that were pruned.
    curves = {curve["group"]: curve for curve in result(tmp_path)["search"]}
    mask = NeuronMask.from_pretrained(tmp_path / "selection" / "safety")
    fields = {"ESU": "exclusive_safety", "EUU": "exclusive_utility", "RU": "redundant"}
    assert mask.config.strategy["ratios"] == {fields[name]: curve["chosen"] for name, curve in curves.items()}
    assert mask.config.strategy["search"]["no_ratio_fits"] == [n for n, curve in curves.items() if not curve["fits"]]
    groups = load_file(tmp_path / "selection" / "groups.safetensors")
    for name, curve in curves.items():
        last = [m for m in masks if m.config.strategy["group"] == name][[0.1, 0.2, 0.3].index(curve["chosen"])]
        for site, codes in groups.items():
            np.testing.assert_array_equal(codes == GROUPS.index(name), last.bits[site])


def test_the_tolerance_decides(tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = []
    for name, tolerance in (("strict", "0"), ("lax", "1000")):
        limits = [f"method.tolerance.{measure}={tolerance}" for measure in ("margin", "loss")]
        assert select(tiny_checkpoint, tmp_path / name, "wifv", *SEARCH, *limits) == 0
        strategy = NeuronMask.from_pretrained(tmp_path / name / "selection" / "safety").config.strategy
        found.append(strategy["ratios"]["redundant"])
    assert found[0] < found[1] == 0.3


@pytest.mark.slow
def test_the_search_is_part_of_choosing_on_halves(
    tiny_checkpoint: Path, tmp_path: Path, pruned_on: list[tuple[Any, list[str], list[str]]]
) -> None:
    assert select(tiny_checkpoint, tmp_path, "wifv", *SEARCH, "validate.splits=1") == 0
    assert len(pruned_on) == 3 * 10
    first, second = (set(pruned_on[place][1]) for place in (10, 20))
    assert first
    assert not first & second


def test_nothing_is_searched_for_unless_asked(
    tiny_checkpoint: Path, tmp_path: Path, pruned_on: list[tuple[Any, list[str], list[str]]]
) -> None:
    assert select(tiny_checkpoint, tmp_path, "wifv") == 0
    assert (pruned_on, result(tmp_path)["search"]) == ([], [])
    strategy = NeuronMask.from_pretrained(tmp_path / "selection" / "safety").config.strategy
    assert "search" not in strategy
    assert strategy["ratios"]["redundant"] == 0.14


@pytest.mark.slow
def test_a_report_shows_the_search_and_the_checks_of_these_very_masks(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = ("validate=prune", "validate.draws=2", "validate.splits=2")
    assert neurofreeze("run", tiny_checkpoint, tmp_path, *SEARCH, *checks, "arms=[safety]") == 0
    page, printed = (tmp_path / "report.html").read_text(encoding="utf-8"), capsys.readouterr().out
    for said in ("Ratios found by pruning", "The model without them", "random 1", "With other prompts"):
        assert said in page
    assert "mean of 2 splits" in page
    for said in ("ratios found by pruning: ESU", "without the chosen neurons the refusal margin falls by", "2 splits"):
        assert said in printed
    # Another choice: what was found about the first says nothing about it.
    again = ("arms=[safety]", "overwrite=true", "fraction=0.3")
    assert neurofreeze("run", tiny_checkpoint, tmp_path, *again) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for absent in ("Ratios found by pruning", "The model without them", "With other prompts"):
        assert absent not in page


def test_a_report_is_written_for_other_methods_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert neurofreeze("run", tiny_checkpoint, tmp_path, "strategy=contrast", "method=top", "arms=[safety]") == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "contrast" in page
    assert "Share of each layer" in page
    assert "No neurons were recorded" not in page
    assert "exclusive safety units" not in page
