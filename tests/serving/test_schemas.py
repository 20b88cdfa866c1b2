"""Requests: OpenAI's fields, what is ignored, what is refused, and that a refusal repeats nothing of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from neurofreeze.serving.errors import ApiError
from neurofreeze.serving.schemas import ChatRequest, parse

SAID = "a very private question"


def fields(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": SAID}], **changes}


def refused(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body)
    assert caught.value.status == 400
    assert SAID not in json.dumps(caught.value.content)
    return caught.value


def test_what_callers_send_is_understood() -> None:
    found = parse(
        json.dumps(
            fields(
                messages=[
                    {"role": "developer", "content": "be brief", "name": "rules"},
                    {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
                ],
                stop="\n",
                temperature=1,
                n=1,
                tools=[],
                frequency_penalty=0.0,
                response_format={"type": "text"},
                user="someone",
                metadata={"a": "b"},
                stream_options={"include_usage": True},
            )
        ).encode()
    )
    assert [message.content for message in found.messages] == ["be brief", "one two"]
    assert found.stop == ["\n"]
    assert found.temperature == 1.0


def test_null_is_as_good_as_nothing() -> None:
    optional = [name for name, field in ChatRequest.model_fields.items() if not field.is_required()]
    assert {"stop", "seed", "stream_options"} <= set(optional)
    assert parse(json.dumps(fields(**dict.fromkeys(optional))).encode()) == parse(json.dumps(fields()).encode())


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": SAID}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": SAID}]}]}, "messages.0.content",
         "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages.0.content",
         "invalid_value"),
        ({"messages": SAID}, "messages", "invalid_value"),
        ({"model": None}, "model", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_value"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": [""]}, "stop.0", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"n": 2}, "n", "unsupported_value"),
        ({"n": True}, "n", "unsupported_value"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_value"),
        ({"logprobs": True}, "logprobs", "unsupported_value"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_value"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_value"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_value"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(changes: dict[str, Any], param: str, code: str) -> None:
    error = refused(json.dumps(fields(**changes)).encode())
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"\xff\xfe", f'{{"model": "{SAID}'.encode(), b'{"temperature": NaN}', b"[" * 100_000],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    refused(body)


def test_not_a_number_is_no_temperature() -> None:
    assert refused(json.dumps(fields(temperature=float("nan"))).encode()).param == "temperature"
