"""Several gates in one call, filters after them, and the settings that put them together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import neurofreeze as nf
from neurofreeze.config.guard import FilterConfig, FilterEndpointConfig, FilterJudgeConfig, GuardConfig
from neurofreeze.config.location import conf_folder
from neurofreeze.errors import ConfigError, GuardError, JudgeError
from neurofreeze.evaluation.judges.base import Verdict
from neurofreeze.guard.chain import Chain
from neurofreeze.guard.filters import Filter
from neurofreeze.guard.loading import load_chain
from neurofreeze.guard.reactions import Blend, Flag, Refuse
from neurofreeze.guard.triggers import LifTrigger
from tests.guard.scripted import PROMPTS, Scripted, Tape, batch


class Rows:
    """A judge that has one verdict a row, and keeps what it was asked."""

    label = "rows"

    def __init__(self, *verdicts: str) -> None:
        self.verdicts = [Verdict(verdict) for verdict in verdicts]
        self.requests: list[str] = []
        self.answers: list[str] = []

    def judge(self, requests: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        self.requests, self.answers = list(requests), list(answers)
        return self.verdicts[: len(answers)]


def test_an_answer_of_ours_ends_also_where_generate_has_no_end(
    gated: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated.generation_config, "eos_token_id", None)
    gate = nf.Gate(gated, tiny_tokenizer, Scripted(frozenset({(0, 1)})), Refuse("No."))
    inputs = batch(tiny_tokenizer)
    answer = gate.generate(**inputs)[0, inputs["input_ids"].shape[1] :].tolist()
    ids = tiny_tokenizer("No.", add_special_tokens=False)["input_ids"]
    assert answer[: len(ids) + 2] == [*ids, tiny_tokenizer.eos_token_id, tiny_tokenizer.pad_token_id]


def test_the_first_gate_that_replaces_an_answer_ends_the_matter(gated: Any, tiny_tokenizer: Any, expert: Any) -> None:
    inputs = batch(tiny_tokenizer)
    flags, refuses, late = (
        Scripted(frozenset({(0, 1), (1, 1)})),
        Scripted(frozenset({(1, 1)})),
        Scripted(frozenset({(1, 1), (2, 2)})),
    )
    chain = Chain(
        gated,
        tiny_tokenizer,
        [
            nf.Gate(gated, tiny_tokenizer, flags, Flag()),
            nf.Gate(gated, tiny_tokenizer, refuses, Refuse("First.")),
            nf.Gate(gated, tiny_tokenizer, late, Refuse("Second."), steps=3),
            nf.Gate(gated, tiny_tokenizer, LifTrigger(), Blend(0.0), expert=expert),
        ],
    )
    found = chain.generate(**inputs)
    texts = [tiny_tokenizer.decode(row, skip_special_tokens=True) for row in found[:, inputs["input_ids"].shape[1] :]]
    assert torch.equal(found[0], gated.generate(**inputs)[0])
    assert [text.strip() for text in texts[1:]] == ["First.", "Second."]
    decided = [(e.row, e.step, e.reaction) for e in chain.events if e.outcome in ("flagged", "blocked")]
    assert decided == [(0, 1, "flag"), (1, 1, "flag"), (1, 1, "refuse"), (2, 2, "refuse")]


def test_filters_judge_whole_answers_in_turn(gated: Any, tiny_tokenizer: Any) -> None:
    inputs = batch(tiny_tokenizer)
    first, second = Rows("safe", "unsafe", "undecided"), Rows("unsafe", "safe", "safe")
    gate = nf.Gate(gated, tiny_tokenizer, Scripted(frozenset({(0, 1)})), Refuse("Gate."))
    chain = Chain(gated, tiny_tokenizer, [gate], [Filter(first, text="Filter."), Filter(second, action="flag")])
    found = chain.generate(**inputs, requests=list(PROMPTS))
    own = gated.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    assert first.requests == list(PROMPTS)
    assert first.answers[0] == "Gate.", "a filter sees what the gates have left"
    assert first.answers[1] == tiny_tokenizer.decode(own[1], skip_special_tokens=True).strip()
    assert second.answers == ["Gate.", "Filter.", "Filter."]
    texts = [tiny_tokenizer.decode(row, skip_special_tokens=True) for row in found[:, inputs["input_ids"].shape[1] :]]
    assert [text.strip() for text in texts] == ["Gate.", "Filter.", "Filter."]
    assert [(e.row, e.guard, e.outcome, e.details) for e in chain.events if e.guard == "rows"] == [
        (0, "rows", "passed", {"verdict": "safe"}),
        (1, "rows", "blocked", {"verdict": "unsafe"}),
        (2, "rows", "blocked", {"verdict": "undecided"}),
        (0, "rows", "flagged", {"verdict": "unsafe"}),
        (1, "rows", "passed", {"verdict": "safe"}),
        (2, "rows", "passed", {"verdict": "safe"}),
    ]


def test_a_filter_sees_answers_without_what_follows_their_end(gated: Any, tiny_tokenizer: Any) -> None:
    inputs = batch(tiny_tokenizer)
    end = int(gated.generate(**inputs)[0, inputs["input_ids"].shape[1] + 3])
    judge = Rows("safe", "safe", "safe")
    found = Chain(gated, tiny_tokenizer, [], [Filter(judge)]).generate(**inputs, eos_token_id=end)
    assert torch.equal(found, gated.generate(**inputs, eos_token_id=end))
    assert "<pad>" not in judge.answers[0]
    assert PROMPTS[0] in judge.requests[0], "without requests, the prompt"


def test_each_of_several_answers_is_judged_to_its_own_request(gated: Any, tiny_tokenizer: Any) -> None:
    judge = Rows(*["safe"] * 4)
    several = {"num_return_sequences": 2, "do_sample": True}
    inputs = batch(tiny_tokenizer, PROMPTS[:2])
    Chain(gated, tiny_tokenizer, [], [Filter(judge)]).generate(**inputs, **several, requests=["a", "b"])
    assert judge.requests == ["a", "a", "b", "b"]


def test_nothing_is_streamed_before_a_filter_has_judged_it(gated: Any, tiny_tokenizer: Any) -> None:
    inputs = batch(tiny_tokenizer, PROMPTS[:1])
    streamed = []
    for verdict in ("safe", "unsafe"):
        tape = Tape()
        found = Chain(gated, tiny_tokenizer, [], [Filter(Rows(verdict), text="No.")]).generate(**inputs, streamer=tape)
        streamed.append([token for tokens in tape.tokens[1:] for token in tokens])
        assert streamed[-1] == found[0, inputs["input_ids"].shape[1] :].tolist()
        assert tape.ended == 1
    assert len(streamed[0]) == 12 > len(streamed[1])


def test_a_judge_that_is_short_of_verdicts_is_an_error(gated: Any, tiny_tokenizer: Any) -> None:
    chain = Chain(gated, tiny_tokenizer, [], [Filter(Rows("safe"))])
    with pytest.raises(GuardError, match="1 verdicts on 3 answers"):
        chain.generate(**batch(tiny_tokenizer))
    for asked in (["a", "b"], ["a"]):  # one would part three evenly, and be none of two of them
        with pytest.raises(GuardError, match=f"{len(asked)} requests for 3 prompts"):
            chain.generate(**batch(tiny_tokenizer), requests=asked)
    with pytest.raises(GuardError, match="action is 'delete'"):
        Filter(Rows(), action="delete")  # type: ignore[arg-type]
    with pytest.raises(GuardError, match="some words"):
        Filter(Rows(), text="")
    with pytest.raises(GuardError, match="undecided is 'maybe'"):
        Filter(Rows(), undecided="maybe")  # type: ignore[arg-type]


def test_calls_in_two_threads_do_not_see_each_other(gated: Any, tiny_tokenizer: Any) -> None:
    found: dict[int, list[tuple[int, int]]] = {}

    def call(rows: int) -> None:
        trigger = Scripted()
        gate = nf.Gate(gated, tiny_tokenizer, trigger, Flag(), steps=4)
        gate.generate(**batch(tiny_tokenizer, PROMPTS[:rows]))
        found[rows] = trigger.seen

    threads = [threading.Thread(target=call, args=(rows,)) for rows in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [(row, step) for step in range(4) for row in range(n)] for n in (1, 2, 3)}


def test_a_chain_is_of_one_model(gated: Any, tiny_tokenizer: Any, expert: Any) -> None:
    with pytest.raises(GuardError, match="another model object"):
        Chain(expert, tiny_tokenizer, [nf.Gate(gated, tiny_tokenizer, Scripted(), Flag())])


def test_settings_make_a_chain(
    gated: Any, tiny_tokenizer: Any, expert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = nf.Gate(gated, tiny_tokenizer, LifTrigger(), Flag(), steps=3, expert=expert).save_pretrained(
        tmp_path / "g"
    )
    monkeypatch.setattr("neurofreeze.guard.loading.load_judge", lambda config, phrases: Rows("safe"))
    monkeypatch.setattr("neurofreeze.guard.loading.load_expert", lambda name: expert)
    judged = FilterConfig(judge=FilterJudgeConfig(name="guard", model="some/guard"), action="flag", text="No.")
    chain = load_chain(GuardConfig(gates=[str(folder)], filters={"it": judged}, expert="e"), gated, tiny_tokenizer)
    assert [gate.trigger.name for gate in chain.gates] == ["lif"]
    assert [(part.label, part.action, part.text) for part in chain.filters] == [("it", "flag", "No.")]
    plain = load_chain(GuardConfig(), gated, tiny_tokenizer)
    inputs = batch(tiny_tokenizer)
    assert torch.equal(plain.generate(**inputs), gated.generate(**inputs))


def test_settings_in_conf_are_of_the_schema() -> None:
    for path in sorted((conf_folder() / "guard").glob("*.yaml")):
        merged = OmegaConf.merge(OmegaConf.structured(GuardConfig), OmegaConf.load(path))
        assert isinstance(OmegaConf.to_object(merged), GuardConfig), path
    with pytest.raises(ConfigError, match="each folder once"):
        GuardConfig(gates=["a", "a"])
    with pytest.raises(ConfigError, match=r"judge\.name is 'phrases'"):
        FilterConfig(judge=FilterJudgeConfig())
    with pytest.raises(ConfigError, match="action is 'warn'"):
        FilterConfig(judge=FilterJudgeConfig(name="guard", model="m"), action="warn")


def test_an_error_in_a_filter_s_judge_names_the_filter_s_setting(gated: Any, tiny_tokenizer: Any) -> None:
    for wrong, key in (
        ({"tokens": 0}, "tokens"),
        ({"name": "guard"}, "model"),
        ({"endpoint": {"timeout": 0}}, r"endpoint\.timeout"),
    ):
        merged = OmegaConf.merge(OmegaConf.structured(GuardConfig), {"filters": {"mine": {"judge": wrong}}})
        with pytest.raises(ConfigError, match=rf"^guard\.filters\.\*\.judge\.{key} is"):
            OmegaConf.to_object(merged)
    endpoint = FilterEndpointConfig(url="https://judge.example/v1", key_variable="NOT_SET_ANYWHERE")
    judge = FilterJudgeConfig(name="endpoint", model="m", endpoint=endpoint)
    with pytest.raises(JudgeError, match=r"^guard\.filters\.mine: .*judge\.endpoint\.key_variable names"):
        load_chain(GuardConfig(filters={"mine": FilterConfig(judge=judge)}), gated, tiny_tokenizer)
