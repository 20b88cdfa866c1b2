from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neurofreeze.benchmark.data import SuiteData
from neurofreeze.benchmark.plan import Place, Plan
from neurofreeze.config.benchmark import SuiteConfig
from neurofreeze.errors import ConfigError, DataError


def suite(**arms: Any) -> SuiteConfig:
    return SuiteConfig(arms={"none": {}, **arms}, seeds=2)


def test_arms_are_settings_over_those_of_the_command_line() -> None:
    arms = suite(
        wide={"freeze": "safety", "settings": {"strategy": "margin", "fraction": 0.72}},
        slow={"times": 2, "settings": {"training.learning_rate": 1e-5, "training": {"warmup_steps": 0}}},
    )
    plan = Plan.of(arms, ["strategy=contrast", "fraction=0.3", "training.learning_rate=3e-5"])
    none, wide, slow = (plan.configs["domain", arm] for arm in arms.only)
    assert (none.strategy.name, none.fraction, none.training.learning_rate) == ("contrast", 0.3, 3e-5)
    assert (wide.strategy.name, wide.fraction, wide.training.learning_rate) == ("margin", 0.72, 3e-5)
    assert (slow.strategy.name, slow.training.learning_rate, slow.training.warmup_steps) == ("contrast", 1e-5, 0)


def test_cells_come_seed_by_seed() -> None:
    plan = Plan.of(suite(), ["seed=7"])
    assert list(plan.places()) == [Place("domain", 0, "none"), Place("domain", 1, "none")]
    assert plan.config(Place("domain", 1, "none")).seed == 1
    assert plan.bases["domain"].seed == 7


def test_fine_tuning_sets_have_settings_of_their_own() -> None:
    sets = {"maths": {"train": "it's 1.jsonl", "holdout": "b.jsonl", "settings": {"training.max_length": 64}}}
    plan = Plan.of(SuiteConfig(sets=sets), [])
    config = plan.configs["maths", "none"]
    assert (config.data.train, config.data.holdout, config.training.max_length) == ("it's 1.jsonl", "b.jsonl", 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fractoin": 0.1}, "arm odd: .*fractoin"),
        ({"fraction": 2}, "arm odd: fraction is 2"),
        ({"backend": "ddp"}, "arm odd: backend is 'ddp'"),
        ({"method": "nest"}, "arm odd: method is 'nest'"),
        ({"data.harmful": "other.jsonl"}, "arm odd: data.harmful is 'other.jsonl', for other arms"),
        ({"model": "other"}, "arm odd has other settings of model than the others"),
        ({"seed": 3}, "arm odd has other settings of seed"),
        ({"alignment.mode": "never"}, "arm odd has other settings of alignment"),
        ({"evaluation.phrases": "zou-qi"}, "arm odd has other settings of evaluation"),
        ({"evaluation.limit": 5}, "arm odd has other settings of evaluation"),
        ({"training.max_length": 64}, "arm odd has other settings of training.max_length"),
        ({"training.save_steps": 2}, "arm odd: training.save_steps is 2; expected 0"),
        ({"evaluation.variants": ["plain"]}, "arm odd: evaluation.variants or evaluation.judge is set"),
        ({"evaluation.judge": {"name": "guard", "model": "m"}}, "arm odd: evaluation.variants or evaluation.judge"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan.of(suite(odd={"settings": settings}), [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": {"none": {"freze": "safety"}}}, "suite.arms.none: .*freze"),
        ({"arms": {"a/b": {}, "none": {}}}, "'a/b'"),
        ({"only": ["some"]}, "suite.only is .*some"),
        ({"against": ["some"]}, "suite.against is .*some"),
        ({"at": [0.5, 0.25, 1.0]}, "suite.at"),
        ({"at": [0.5]}, "suite.at"),
        ({"sets": {}}, "suite.sets"),
    ],
)
def test_suites_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SuiteConfig(**settings)


def test_requests_of_another_kind_must_be_others(tmp_path: Path) -> None:
    same = SuiteConfig(elsewhere="bundled:harmful/evaluation")
    with pytest.raises(
        DataError, match=r"suite\.elsewhere=bundled:harmful/evaluation has only requests of data\.harmful"
    ):
        SuiteData.read(Plan.of(same, []).bases["domain"], same, same.sets["domain"], tmp_path)
