"""Recipes are settings: each composes to what it says, and objectives run through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.commands.settings import compose_once
from neurofreeze.config.location import conf_folder
from neurofreeze.config.schema import Config
from neurofreeze.errors import ConfigError

from .runs import neurofreeze

BALANCED = ("bundled:harmful/align", "bundled:lookalikes/align")
RECIPES: dict[str, dict[str, Any]] = {
    "freeze_replay": {"replay.weight": 0.1, "anchor.weight": 0.0, "fraction": 0.15},
    "freeze_anchor": {"replay.weight": 0.0, "anchor.weight": 0.1, "anchor.tokens": 4},
    "balanced_anchor": {"anchor.weight": 0.1, "anchor.rows": 2, "arms": ("none",), "data.replay": BALANCED},
    "hold_rest": {"freeze.kinds": ("embeddings", "norms", "lm_head", "other"), "replay.weight": 0.0},
    "safety_layers": {"strategy.name": "safe_layers"},
    "redundant_only": {"method.freeze": "all_but_ru", "method.ratios.redundant": 0.2},
    "utility_only": {"method.freeze": "all_but_euu", "freeze.rest.norms": "freeze"},
}


def composed(*overrides: str) -> Config:
    return compose_once(list(overrides))[0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_what_it_says(name: str) -> None:
    more = ["strategy.options.first=0", "strategy.options.last=1"] if name == "safety_layers" else []
    config = composed(f"experiment={name}", *more)
    for key, expected in RECIPES[name].items():
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        assert (tuple(found) if isinstance(expected, tuple) else found) == expected, key


def test_every_recipe_is_tested_and_documented() -> None:
    others = {"none", "seeds", "strategies"}
    assert {path.stem for path in (conf_folder() / "experiment").glob("*.yaml")} - others == set(RECIPES)
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in RECIPES)


def test_methods_that_teach_refusals_refuse_objectives() -> None:
    with pytest.raises(ConfigError, match=r"replay\.weight is 0\.1; expected 0, since method=nest teaches refusals"):
        composed("method=nest", "replay=refusals")


@pytest.mark.parametrize("recipe", ["replay=refusals", "anchor=openings"])
def test_objectives_need_something_to_hold(recipe: str) -> None:
    assert composed("data.replay=[]").data.replay == []
    with pytest.raises(ConfigError, match=r"data\.replay is \[\]; expected at least one set"):
        composed(recipe, "data.replay=[]")


@pytest.mark.slow
def test_objectives_run_with_every_arm_and_are_logged(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = ("replay=refusals", "anchor=openings", "anchor.rows=2", "arms=[none,safety]", "training.max_length=400")
    assert neurofreeze("run", tiny_checkpoint, tmp_path, *settings) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [row for row in rows if row["stage"] == "train" and "replay_loss" in row]
    assert {row["arm"] for row in trained} == {"none", "safety"}
    assert all(row["replay_loss"] > 0 and row["anchor_kl"] > -1e-3 for row in trained)
    marker = json.loads((tmp_path / "stages" / "train-safety.json").read_text(encoding="utf-8"))
    assert marker["settings"]["anchor"] == {"weight": 0.1, "rows": 2, "tokens": 4}
    # Another weight is another run.
    assert neurofreeze("run", tiny_checkpoint, tmp_path, *settings, "replay.weight=0.2") == 1
