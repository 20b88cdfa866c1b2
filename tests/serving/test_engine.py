"""Batches of jobs on a real model: each row is answered as if it were alone, and guarded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import neurofreeze as nf
from neurofreeze.config.monitor import DetectionConfig
from neurofreeze.data.sources import read
from neurofreeze.errors import JudgeError
from neurofreeze.evaluation.judges.base import Verdict
from neurofreeze.guard.chain import Chain
from neurofreeze.guard.filters import Filter
from neurofreeze.guard.monitor import Monitor, calibrate
from neurofreeze.guard.reactions import Flag, Reflect
from neurofreeze.serving.engine import Engine
from neurofreeze.serving.jobs import Failed, Finished, Job, Piece, Reply, Sampling
from tests.guard.scripted import Scripted
from tests.serving.serving import PROMPTS, refusing

GREEDY = Sampling(0.0)


class Kept(list[Reply]):
    """Replies to one job."""

    @property
    def text(self) -> str:
        return "".join(reply.text for reply in self if isinstance(reply, Piece))

    @property
    def end(self) -> Finished:
        assert isinstance(self[-1], Finished)
        assert not any(isinstance(reply, (Finished, Failed)) for reply in self[:-1])
        return self[-1]


def ids(tokenizer: Any, prompt: str) -> list[int]:
    return tokenizer(prompt)["input_ids"]


def answers(engine: Engine, *jobs: dict[str, Any], sampling: Sampling = GREEDY) -> list[Kept]:
    """Replies to jobs of one batch; `prompt` is a text."""
    kept = [Kept() for _ in jobs]
    engine.answer(
        [
            Job(
                prompt=ids(engine.chain.tokenizer, job["prompt"]),
                request=job["prompt"],
                sampling=sampling,
                limit=job.get("limit", 12),
                send=replies.append,
                stop=job.get("stop", ()),
                deadline=job.get("deadline", float("inf")),
            )
            for job, replies in zip(jobs, kept, strict=True)
        ]
    )
    return kept


def expected(model: Any, tokenizer: Any, prompt: str, tokens: int = 12) -> str:
    """By the model's own generate."""
    inputs = torch.tensor([ids(tokenizer, prompt)])
    found = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.decode(found[0, inputs.shape[1] :], skip_special_tokens=True)


@pytest.fixture
def plain(model: Any, tiny_tokenizer: Any) -> Engine:
    return Engine(Chain(model, tiny_tokenizer))


def test_each_row_of_a_batch_is_the_model_s_own_answer(plain: Engine, model: Any, tiny_tokenizer: Any) -> None:
    found = answers(plain, *({"prompt": prompt} for prompt in PROMPTS))
    wanted = [expected(model, tiny_tokenizer, prompt) for prompt in PROMPTS]
    assert [replies.text for replies in found] == wanted
    assert len(set(wanted)) == len(PROMPTS)
    assert all(len(replies) > 3 for replies in found)  # piece by piece


def test_rows_end_in_their_own_time(plain: Engine, model: Any, tiny_tokenizer: Any) -> None:
    whole = expected(model, tiny_tokenizer, PROMPTS[1], 20)
    stop = whole[4:7]
    short, stopped, late, long = answers(
        plain,
        {"prompt": PROMPTS[0], "limit": 3},
        {"prompt": PROMPTS[1], "limit": 20, "stop": (stop,)},
        {"prompt": PROMPTS[2], "limit": 20, "deadline": 0.0},
        {"prompt": PROMPTS[3], "limit": 20},
    )
    assert (short.text, short.end.tokens) == (expected(model, tiny_tokenizer, PROMPTS[0], 3), 3)
    assert short.end.reason == "length"
    assert (stopped.text, stopped.end.reason) == (whole.partition(stop)[0], "stop")
    assert long.text == expected(model, tiny_tokenizer, PROMPTS[3], 20)
    assert isinstance(late[-1], Failed)
    assert late[-1].error.status == 504


def test_who_ends_first_hears_what_a_flagging_filter_found(model: Any, tiny_tokenizer: Any) -> None:
    class Short:
        label = "short"

        def judge(self, requests: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
            return [Verdict.UNSAFE if len(answer) < 20 else Verdict.SAFE for answer in answers]

    engine = Engine(Chain(model, tiny_tokenizer, filters=[Filter(Short(), "flag")]))
    jobs = [{"prompt": PROMPTS[0], "limit": 3}, {"prompt": PROMPTS[1], "limit": 20}]
    together = answers(engine, *jobs)
    alone = [answers(engine, job)[0] for job in jobs]
    assert [replies.end.events for replies in together] == [replies.end.events for replies in alone]
    assert [replies.end.events[0]["outcome"] for replies in together] == ["flagged", "passed"]
    assert len(together[0]) > 2  # and its text has not waited


def test_a_batch_runs_no_longer_than_its_rows_need(plain: Engine, model: Any) -> None:
    passes: list[int] = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    try:
        answers(plain, {"prompt": PROMPTS[0], "limit": 3}, {"prompt": PROMPTS[1], "limit": 60, "deadline": 0.0})
    finally:
        handle.remove()
    assert len(passes) == 3


def test_seeded_draws_repeat_and_leave_the_generator_alone(plain: Engine) -> None:
    def draw(seed: int | None, temperature: float = 1.5) -> str:
        return answers(plain, {"prompt": PROMPTS[0]}, sampling=Sampling(temperature, 0.9, seed))[0].text

    state = torch.random.get_rng_state()
    first = draw(1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert draw(1) == first
    assert draw(2) != first
    assert draw(None, 0.001) == answers(plain, {"prompt": PROMPTS[0]})[0].text  # too cold to draw


def test_a_gate_s_answer_takes_the_place_of_one_row_s(model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(Chain(model, tiny_tokenizer, [refusing(model, tiny_tokenizer, (1, 2))]))
    found = answers(engine, *({"prompt": prompt} for prompt in PROMPTS[:3]))
    wanted = [expected(model, tiny_tokenizer, prompt) for prompt in PROMPTS[:3]]
    assert [replies.text.strip() for replies in found] == [wanted[0].strip(), "No.", wanted[2].strip()]
    assert [replies.end.reason for replies in found] == ["length", "content_filter", "length"]
    events = found[1].end.events
    assert [(event["step"], event["value"], event["outcome"]) for event in events] == [(2, 1.0, "blocked")]
    assert [[event["outcome"] for event in replies.end.events] for replies in found] == [
        ["passed"], ["blocked"], ["passed"],
    ]  # fmt: skip
    assert not any("row" in event for event in events)


def test_nothing_is_told_of_an_answer_that_a_gate_may_still_replace(model: Any, tiny_tokenizer: Any) -> None:
    told: list[int] = []
    engine = Engine(Chain(model, tiny_tokenizer, [refusing(model, tiny_tokenizer, steps=4)]))
    steps: list[int] = []
    handle = model.register_forward_hook(lambda *_: steps.append(1))
    try:
        job = Job(ids(tiny_tokenizer, PROMPTS[0]), "", GREEDY, 12, lambda _: told.append(len(steps)))
        engine.answer([job])
    finally:
        handle.remove()
    assert min(told) == 4  # the fourth step is the last that is judged
    assert max(told) == 12
    assert len(set(told)) > 5  # and from then on as it comes


def test_a_gate_without_a_last_step_is_waited_for(model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(Chain(model, tiny_tokenizer, [refusing(model, tiny_tokenizer, (0, 9), steps=None)]))
    refused, answered = answers(engine, {"prompt": PROMPTS[0]}, {"prompt": PROMPTS[1]})
    assert (refused.text.strip(), answered.text) == ("No.", expected(model, tiny_tokenizer, PROMPTS[1]))


def test_a_row_that_ends_early_still_tells_that_it_passed(model: Any, tiny_tokenizer: Any) -> None:
    gate = nf.Gate(model, tiny_tokenizer, Scripted(), Flag(), steps=8)
    short, long = answers(
        Engine(Chain(model, tiny_tokenizer, [gate])), {"prompt": PROMPTS[0], "limit": 2}, {"prompt": PROMPTS[1]}
    )
    assert [event["outcome"] for event in short.end.events] == ["passed"]
    assert [event["outcome"] for event in long.end.events] == ["passed"]


class Judge:
    label = "judge"

    def judge(self, requests: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        self.requests = list(requests)
        return [Verdict.UNSAFE if request == PROMPTS[1] else Verdict.SAFE for request in requests]


def test_a_filter_judges_each_answer_to_its_request(model: Any, tiny_tokenizer: Any) -> None:
    judge = Judge()
    engine = Engine(Chain(model, tiny_tokenizer, filters=[Filter(judge, text="No.")]))
    found = answers(engine, *({"prompt": prompt} for prompt in PROMPTS[:2]))
    assert judge.requests == list(PROMPTS[:2])
    assert [replies.end.reason for replies in found] == ["length", "content_filter"]
    assert found[1].text.strip() == "No."


@pytest.fixture(scope="module")
def monitor(model: Any, tiny_tokenizer: Any) -> Monitor:
    mask = nf.NeuronMask.random(nf.NeuronMap.of(model), 0.05, seed=0)
    examples = read("bundled:instructions/calibration")[:60]
    return Monitor(
        calibrate(model, tiny_tokenizer, examples, mask), DetectionConfig(false_alarm_rate=0.1, run_length=20)
    )


def test_the_monitor_sees_prompts_and_not_the_guard_s_questions(
    model: Any, tiny_tokenizer: Any, monitor: Monitor
) -> None:
    monitor.restart()
    gate = nf.Gate(model, tiny_tokenizer, Scripted(frozenset({(0, 0), (1, 1)})), Reflect(draft=2))
    engine = Engine(Chain(model, tiny_tokenizer, [gate]), monitor)
    try:
        found = answers(engine, *({"prompt": prompt} for prompt in PROMPTS[:3]))
        assert monitor.prompts == 3
        rows = [replies.end.monitor for replies in found]
        assert [row["prompt"] for row in rows if row] == [1, 2, 3]
        alone = [answers(engine, {"prompt": prompt})[0].end.monitor for prompt in PROMPTS[:3]]
        distances = [[row["distance"] for row in some if row] for some in (rows, alone)]
        assert distances[0] == pytest.approx(distances[1], rel=1e-3)  # each row got its own verdict
        assert len(set(distances[0])) == 3
    finally:
        engine.close()
    answers(engine, {"prompt": PROMPTS[0]})
    assert monitor.prompts == 6


class Unwilling:
    label = "unwilling"

    def judge(self, requests: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        if len(requests) > 1:
            raise JudgeError("too much")
        return [Verdict.SAFE]


def test_a_prompt_that_is_read_again_since_its_batch_failed_counts_once(
    model: Any, tiny_tokenizer: Any, monitor: Monitor
) -> None:
    monitor.restart()
    engine = Engine(Chain(model, tiny_tokenizer, filters=[Filter(Unwilling())]), monitor)
    kept = [Kept() for _ in range(3)]
    jobs = [
        Job(ids(tiny_tokenizer, prompt), prompt, GREEDY, 4, replies.append)
        for prompt, replies in zip(PROMPTS, kept, strict=False)
    ]
    try:
        with pytest.raises(JudgeError):
            engine.answer(jobs)
        for job in jobs:
            engine.answer([job])
    finally:
        engine.close()
    assert monitor.prompts == 3
    assert [replies.end.monitor["prompt"] for replies in kept if replies.end.monitor] == [1, 2, 3]
