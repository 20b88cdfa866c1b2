"""The data sets of a run: roles, the holdout, and that none shares a prompt with another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from neurofreeze.config.schema import DataConfig
from neurofreeze.data import Example, digest, read
from neurofreeze.errors import DataError
from neurofreeze.stages.datasets import Datasets

from .runs import neurofreeze


@pytest.fixture(autouse=True)
def _own_data_set_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def file(prompts: list[str], name: str = "train.jsonl") -> str:
    rows = [{"prompt": prompt, "response": f"Answer {number}."} for number, prompt in enumerate(prompts)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def load(
    config: DataConfig,
    align: bool = True,
    replay: bool = False,
    replay_answers: bool = True,
    limit: int | None = None,
    seed: int = 0,
) -> Datasets:
    return Datasets.read(config, align=align, replay=replay, replay_answers=replay_answers, limit=limit, seed=seed)


def prompts(count: int) -> list[str]:
    return [f"What is the fee of service number {number}?" for number in range(count)]


def test_the_bundled_sets_are_disjoint_and_complete() -> None:
    found = load(DataConfig())
    assert {role: len(examples) for role, examples in found.roles().items()} == {
        "train": 220,
        "holdout": 80,
        "safety": 30,
        "utility": 40,
        "harmful": 80,
        "lookalikes": 60,
        "general": 50,
        "alignment": 270,
    }


def test_a_bundled_training_set_is_held_out_by_its_own_evaluation_split() -> None:
    assert load(DataConfig()).holdout == read("bundled:retail_bank/evaluation")


def test_a_tenth_of_a_file_is_held_out_and_not_trained_on() -> None:
    found = load(DataConfig(train=file(prompts(57))))
    assert (len(found.train), len(found.holdout)) == (52, 5)
    assert not {e.key for e in found.train} & {e.key for e in found.holdout}
    assert sorted(e.prompt for e in [*found.train, *found.holdout]) == sorted(prompts(57))


def test_the_holdout_is_drawn_by_the_seed() -> None:
    config = DataConfig(train=file(prompts(60)))
    assert load(config, seed=1).holdout == load(config, seed=1).holdout
    assert load(config, seed=1).holdout != load(config, seed=2).holdout


def test_equal_prompts_stay_on_one_side_of_the_holdout() -> None:
    many = [text for prompt in prompts(20) for text in (prompt, prompt.upper(), f"  {prompt}")]
    for seed in range(5):
        found = load(DataConfig(train=file(many)), seed=seed)
        assert found.holdout
        assert not {e.key for e in found.train} & {e.key for e in found.holdout}
        assert len(found.train) + len(found.holdout) == 60


def test_a_file_too_small_to_hold_out_a_tenth_is_refused() -> None:
    with pytest.raises(DataError, match=r"train\.jsonl has 9 different prompts, too few .*data\.holdout=FILE"):
        load(DataConfig(train=file(prompts(9))))
    assert len(load(DataConfig(train=file(prompts(10)))).holdout) == 1


def test_a_file_that_says_one_thing_over_and_over_is_refused() -> None:
    with pytest.raises(DataError, match=r"train\.jsonl has 1 different prompts"):
        load(DataConfig(train=file(["Again?"] * 12)))


def test_a_prompt_that_occurs_often_does_not_swell_the_holdout() -> None:
    for seed in range(20):
        found = load(DataConfig(train=file([*prompts(30), *["Again?"] * 60])), seed=seed)
        assert len({e.key for e in found.holdout}) == 3


def test_a_holdout_of_one_s_own_is_used_whole() -> None:
    config = DataConfig(train=file(prompts(9)), holdout=file(["Something else?", "And this?"], "holdout.jsonl"))
    found = load(config)
    assert len(found.train) == 9
    assert [e.prompt for e in found.holdout] == ["Something else?", "And this?"]


def test_limit_shortens_evaluation_only() -> None:
    found = load(DataConfig(), limit=7)
    sizes = {role: len(examples) for role, examples in found.roles().items()}
    assert sizes == {
        "train": 220,
        "holdout": 7,
        "safety": 30,
        "utility": 40,
        "harmful": 7,
        "lookalikes": 7,
        "general": 7,
        "alignment": 270,
    }


def test_alignment_data_are_read_only_if_needed() -> None:
    found = load(replace(DataConfig(), alignment=["no-such-file.jsonl"]), align=False)
    assert found.alignment == []
    assert "alignment" not in found.roles()


def test_a_replay_set_needs_answers_only_where_they_are_learned() -> None:
    Path("requests.csv").write_text("prompt\nHow do I pick a lock?\n", encoding="utf-8")
    config = replace(DataConfig(), replay=["requests.csv"])
    assert load(config, replay=True, replay_answers=False).replay == [Example.of("How do I pick a lock?")]
    with pytest.raises(DataError, match=r"requests\.csv has a prompt without an answer"):
        load(config, replay=True)


@pytest.mark.parametrize("role", ["harmful", "lookalikes", "general", "safety", "utility", "alignment"])
def test_a_training_prompt_of_another_role_is_refused(role: str) -> None:
    source = getattr(DataConfig(), role)
    twin = read(source if isinstance(source, str) else source[0], responses=False)[0].prompt
    with pytest.raises(DataError, match=rf"in both data\.train and data\.{role}"):
        load(DataConfig(train=file([twin.upper(), *prompts(30)]), holdout=file(["Held out?"], "holdout.jsonl")))


def test_digests_are_those_of_the_roles() -> None:
    found = load(DataConfig())
    assert found.digests("safety", "utility") == {"safety": digest(found.safety), "utility": digest(found.utility)}


def test_a_run_refuses_a_calibration_prompt_that_is_planted_among_the_evaluated(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = read("bundled:harmful/calibration")[7].prompt
    shouted = file([*prompts(20), f"  {planted.upper()} !"], str(tmp_path / "harmful.jsonl"))
    assert (
        neurofreeze("run", tiny_checkpoint, tmp_path / "run", f"data.harmful={shouted}", "evaluation.limit=null") == 1
    )
    error = capsys.readouterr().err
    assert "is in both data.safety and data.harmful; calibration, training and evaluation must be disjoint" in error
    assert not list((tmp_path / "run").glob("s*/*")), "no stage has begun"
