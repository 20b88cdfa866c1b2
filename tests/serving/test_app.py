"""The endpoint as callers see it: OpenAI's shapes and status codes, limits, and no words where none belong."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest

from neurofreeze.config.serve import ServeConfig
from neurofreeze.errors import ConfigError, JudgeError
from neurofreeze.evaluation.judges.base import Verdict
from neurofreeze.guard.filters import Filter
from tests import tiny
from tests.serving.serving import PROMPTS, Caller, body, chunks, refusing, running, text, until

TOKEN = "tok-3f9c2b7a81d64e05"
SECRET = "my neighbour's private matter"


@pytest.fixture(scope="module")
def plain(model: Any, tiny_tokenizer: Any) -> Iterator[Caller]:
    with running(model, tiny_tokenizer, batching={"wait_ms": 30.0}) as caller:
        yield caller


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, in OpenAI's shape."""
    assert response.status_code == status, response.text
    found = response.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"message", "type", "param", "code"}
    return found["error"]


def sample(caller: Caller, name: str, **labels: str) -> float:
    return caller.service.metrics.registry.get_sample_value(name, labels) or 0.0


def test_an_answer_is_the_model_s_own(plain: Caller, model: Any, tiny_tokenizer: Any) -> None:
    response = plain.ask()
    found = response.json()
    prompt = tiny_tokenizer.apply_chat_template(
        body()["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    wanted = model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=tiny_tokenizer.pad_token_id)
    ids = wanted[0, prompt["input_ids"].shape[1] :]
    assert text(response) == tiny_tokenizer.decode(ids, skip_special_tokens=True)
    count = prompt["input_ids"].shape[1]
    assert found["usage"] == {"prompt_tokens": count, "completion_tokens": 12, "total_tokens": count + 12}
    assert (found["object"], found["model"]) == ("chat.completion", "tiny")
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["neurofreeze"] == {"events": [], "monitor": None}
    assert found["id"].removeprefix("chatcmpl-") == response.headers["x-request-id"]


def test_requests_that_wait_are_answered_together_as_alone(plain: Caller) -> None:
    alone = [text(plain.ask(prompt)) for prompt in PROMPTS]
    before = sample(plain, "neurofreeze_batch_size_count")
    found = plain.together([body(prompt, stream=number % 2 == 0) for number, prompt in enumerate(PROMPTS)])
    assert [text(response) for response in found] == alone
    assert sample(plain, "neurofreeze_batch_size_count") - before < len(PROMPTS)


def test_a_stream_is_the_whole_in_pieces(plain: Caller) -> None:
    whole = plain.ask().json()
    response = plain.ask(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    found = chunks(response.text)
    assert text(response) == whole["choices"][0]["message"]["content"]
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    *_, last, usage = found
    assert (last["choices"][0]["finish_reason"], last["neurofreeze"]) == ("length", whole["neurofreeze"])
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert len({chunk["id"] for chunk in found}) == 1
    assert plain.service.streams.held == 0


def test_a_stop_text_is_left_out(plain: Caller) -> None:
    whole = text(plain.ask())
    stop = whole[3:6]
    for stream in (False, True):
        assert text(plain.ask(stop=stop, stream=stream)) == whole.partition(stop)[0]
    assert plain.ask(stop=[stop]).json()["choices"][0]["finish_reason"] == "stop"


def test_models_and_health(plain: Caller) -> None:
    assert [model["id"] for model in plain.get("/v1/models").json()["data"]] == ["tiny"]
    assert plain.get("/health").json() == {"status": "ok"}


def test_bad_requests_have_openai_s_shape_and_repeat_nothing(plain: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "neurofreeze.serving")
    long = " ".join([SECRET] * 200)
    responses = [
        (plain.post(content=b'{"model": "' + SECRET.encode(), headers={"content-type": "application/json"}), 400),
        (plain.ask(SECRET, messages=[{"role": "tool", "content": SECRET}]), 400),
        (plain.ask(SECRET, max_tokens=10_000), 400),
        (plain.ask(long), 400),
        (plain.ask(SECRET, model=SECRET), 404),
        (plain.ask(SECRET * 20_000), 413),
        (plain.post(content=b"x", headers={"content-type": "text/plain"}), 415),
        (plain.get(f"/{SECRET}?q={SECRET}"), 404),
        (plain.get(f"/v1/chat/completions?q={SECRET}"), 405),
    ]
    for response, status in responses:
        error(response, status)
        assert SECRET not in response.text
        assert response.headers["x-content-type-options"] == "nosniff"
    codes = [response.json()["error"]["code"] for response, _ in responses[:6]]
    assert codes == [
        "invalid_json", "invalid_value", "invalid_value", "context_length_exceeded", "model_not_found",
        "body_too_large",
    ]  # fmt: skip
    assert SECRET.split()[0] not in caplog.text
    assert "/v1/chat/completions 400" in caplog.text


def test_a_body_that_hides_its_length_is_cut_off(plain: Caller) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 100_000_000:
            sent += 65_536
            yield b" " * 65_536

    response = plain.many(
        lambda client: client.post(
            "/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}
        )
    )
    assert error(response, 413)["code"] == "body_too_large"
    assert sent < 1_000_000


def test_a_conversation_that_the_template_refuses(model: Any, tiny_tokenizer: Any) -> None:
    import copy

    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = "{{ raise_exception('no system here: ' + messages[0]['content']) }}"
    with running(model, strict) as caller:
        found = error(caller.ask(SECRET), 400)
        assert SECRET not in json.dumps(found)


def test_a_wrong_or_missing_token_is_refused(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SERVING_KEY", TOKEN + "\n")
    with running(model, tiny_tokenizer, token_env="SERVING_KEY") as caller:
        for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": f"Basic {TOKEN}"},
                        {"authorization": "Bearer"}, {"authorization": b"Bearer \xff\xfe"}):  # fmt: skip
            for response in (
                caller.post(json=body(), headers=headers),
                caller.get("/v1/models", headers=headers),
                caller.get("/metrics", headers=headers),
                caller.get("/events", headers=headers),
            ):
                assert error(response, 401)["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
        assert caller.get("/health").status_code == 200
        page = caller.get("/")
        right = caller.post(json=body(max_tokens=2), headers={"authorization": f"Bearer {TOKEN}"})
        assert right.status_code == 200
        assert TOKEN not in page.text + right.text + caplog.text + repr(vars(caller.service.auth))


def test_without_a_token_only_this_machine_is_answered(plain: Caller) -> None:
    hosts = (
        "evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1:8000",
        "evil.example:",
        "evil.example:99999",
        "evil!",
        "",
    )
    for host in hosts:
        assert error(plain.get("/v1/models", headers={"host": host}), 403)["code"] == "wrong_host"
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert plain.get("/v1/models", headers={"host": host}).status_code == 200


def test_settings_that_would_let_anyone_in_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_KEY", TOKEN)
    monkeypatch.setenv("SHORT_KEY", "short")
    ServeConfig(host="0.0.0.0", token_env="SERVING_KEY")
    for wrong in ({"host": "0.0.0.0"}, {"token_env": "SHORT_KEY"}, {"token_env": "NOT_SET"}, {"token_env": TOKEN}):
        with pytest.raises(ConfigError) as caught:
            ServeConfig(**wrong)
        assert TOKEN not in str(caught.value)


class Gate:
    """A judge that waits until it is let go, so that the model's thread is busy."""

    label = "waiting"

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()

    def judge(self, requests: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        self.asked.set()
        assert self.go.wait(30)
        return [Verdict.SAFE] * len(answers)


def test_a_full_queue_and_too_many_streams_are_told_to_come_again(model: Any, tiny_tokenizer: Any) -> None:
    judge = Gate()
    settings: dict[str, Any] = {"limits": {"waiting": 2, "streams": 1}, "batching": {"size": 1}}
    with running(model, tiny_tokenizer, filters=[Filter(judge)], **settings) as caller:

        async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
            async def ask(**fields: Any) -> httpx.Response:
                return await client.post("/v1/chat/completions", json=body(max_tokens=2, **fields))

            first = asyncio.create_task(ask())
            while not judge.asked.is_set():
                await asyncio.sleep(0.01)
            stream = asyncio.create_task(ask(stream=True))
            while not caller.service.streams.held:
                await asyncio.sleep(0.01)
            refused = await ask(stream=True)
            third = asyncio.create_task(ask())
            while len(caller.service.queue) < 2:
                await asyncio.sleep(0.01)
            assert "neurofreeze_queue_length 2.0" in (await client.get("/metrics")).text
            full = await ask()
            judge.go.set()
            return [refused, full, await first, await stream, await third]

        refused, full, *answered = caller.many(work)
        assert error(refused, 429)["code"] == "too_many_streams"
        assert error(full, 429)["code"] == "queue_full"
        assert full.headers["retry-after"] == "1"
        assert [response.status_code for response in answered] == [200] * 3
        assert caller.service.streams.held == 0


def test_who_leaves_in_mid_stream_frees_the_place_and_the_model(plain: Caller, model: Any) -> None:
    passes: list[int] = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    try:
        for stream in (True, False):
            before = len(passes)
            messages = plain.leave(body(stream=stream, max_tokens=400), after=4 if stream else 0)
            assert plain.service.streams.held == 0
            until(lambda: not plain.service.worker.busy)
            assert len(passes) - before < 200
            if stream:
                assert messages[0]["status"] == 200
                assert not any(b"[DONE]" in message.get("body", b"") for message in messages)
    finally:
        handle.remove()
    assert plain.ask().status_code == 200


def test_a_slow_answer_is_given_up(model: Any, tiny_tokenizer: Any) -> None:
    with running(model, tiny_tokenizer, limits={"timeout": 0.15}) as caller:
        assert error(caller.ask(max_tokens=400), 504)["code"] == "timeout"
        streamed = caller.ask(max_tokens=400, stream=True)
        assert json.loads(streamed.text.split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        until(lambda: not caller.service.worker.busy)


class Broken:
    label = "broken"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def judge(self, requests: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        raise self.error


@pytest.mark.parametrize(("raised", "status"), [(JudgeError(SECRET), 503), (RuntimeError(SECRET), 500)])
def test_a_failure_gives_no_answer_and_quotes_nobody(
    model: Any, tiny_tokenizer: Any, raised: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with running(model, tiny_tokenizer, filters=[Filter(Broken(raised))]) as caller:
        assert error(caller.ask(SECRET), status)["type"] == "server_error"
        streamed = caller.ask(SECRET, stream=True).text
        assert "server_error" in streamed
        assert "[DONE]" not in streamed
        assert caller.get("/health").status_code == 200
    assert SECRET not in streamed + caplog.text
    assert type(raised).__name__ in caplog.text
    assert "in judge" in caplog.text  # where it was raised


class Picky:
    """Cannot read some requests."""

    label = "picky"

    def judge(self, requests: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        if any(SECRET in request for request in requests):
            raise JudgeError("too long")
        return [Verdict.SAFE for _ in answers]


def test_what_is_wrong_with_one_request_is_not_the_others_failure(
    plain: Caller, model: Any, tiny_tokenizer: Any
) -> None:
    with running(model, tiny_tokenizer, filters=[Filter(Picky())], batching={"wait_ms": 2000, "size": 3}) as caller:
        found = caller.together([body(PROMPTS[0]), body(SECRET), body(PROMPTS[1])])
        assert [response.status_code for response in found] == [200, 503, 200]
        assert [text(found[0]), text(found[2])] == [text(plain.ask(prompt)) for prompt in PROMPTS[:2]]


def test_a_long_answer_takes_no_other_row_past_the_context(tiny_tokenizer: Any) -> None:
    model = tiny.model("gpt2", vocab_size=len(tiny_tokenizer), n_positions=64).eval()  # positions past it are an error
    with running(model, tiny_tokenizer, batching={"wait_ms": 500, "size": 2}) as caller:
        asked = [body("I lost my card " * 6, max_tokens=4), body("hi", max_tokens=45)]
        assert [response.status_code for response in caller.together(asked)] == [200, 200]


def test_what_the_guard_did_is_told_to_caller_metrics_and_page(model: Any, tiny_tokenizer: Any) -> None:
    with running(model, tiny_tokenizer, [refusing(model, tiny_tokenizer, (0, 1))]) as caller:
        found = caller.ask(SECRET).json()
        assert found["choices"][0]["message"]["content"].strip() == "No."
        assert found["choices"][0]["finish_reason"] == "content_filter"
        (event,) = found["neurofreeze"]["events"]
        assert (event["guard"], event["step"], event["outcome"]) == ("scripted", 1, "blocked")
        (last,) = (chunk for chunk in chunks(caller.ask(SECRET, stream=True).text) if "neurofreeze" in chunk)
        assert last["neurofreeze"]["events"] == [event]
        assert last["choices"][0]["finish_reason"] == "content_filter"
        labels = {"guard": "scripted", "reaction": "refuse", "outcome": "blocked"}
        assert sample(caller, "neurofreeze_guard_events_total", **labels) == 2
        answered = {"route": "/v1/chat/completions", "status": "200"}
        assert sample(caller, "neurofreeze_requests_total", **answered) == 2
        usage = found["usage"]
        for kind in ("prompt", "completion"):
            assert sample(caller, "neurofreeze_tokens_total", kind=kind) == 2 * usage[f"{kind}_tokens"]
        shown = list(caller.service.feed.recent)
        assert [entry["outcome"] for entry in shown] == ["blocked", "blocked"]
        assert shown[0]["request"] == found["id"].removeprefix("chatcmpl-")
        assert SECRET.split()[0] not in json.dumps(shown) + caller.get("/metrics").text


def test_callers_can_be_kept_from_the_gate_s_values(model: Any, tiny_tokenizer: Any) -> None:
    with running(model, tiny_tokenizer, [refusing(model, tiny_tokenizer, (0, 1))], events=False) as caller:
        found = caller.ask().json()
        assert "neurofreeze" not in found
        assert found["choices"][0]["finish_reason"] == "content_filter"
        assert "threshold" not in caller.ask(stream=True).text
        assert len(caller.service.feed.recent) == 2


def test_the_page_loads_nothing_from_elsewhere(plain: Caller) -> None:
    response = plain.get("/")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http://" not in response.text
    assert "https://" not in response.text
