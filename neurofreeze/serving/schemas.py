"""What a chat completion request may hold, as in OpenAI's reference; what we cannot do is refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from neurofreeze.serving.errors import ApiError

# Fields of OpenAI's that would change the answer, with the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "web_search_options": (None,),
}


def _text(content: Any) -> Any:
    """Content as a text: itself, or its parts if all are text."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise ValueError("expected a text, or a list of parts of type text")
    parts = [part.get("text") for part in content]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None


def _same(found: Any, expected: Any) -> bool:
    # 1 == True, but n=true is not n=1.
    return (type(found) is bool) == (type(expected) is bool) and bool(found == expected)


def _stops(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


# The length is the list's own: that of None would be an error of the validator's, not of the request.
_Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Message(_Model):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text)]


class StreamOptions(_Model):
    """What a stream is to tell beside the answer."""

    include_usage: bool = False


class ChatRequest(_Model):
    """The body of `/v1/chat/completions`. Fields that are not here change nothing and are ignored, as OpenAI does."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[_Stops | None, BeforeValidator(_stops)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, found: Any) -> Any:
        if isinstance(found, dict):
            for name, neutral in _NEUTRAL.items():
                if not any(_same(found.get(name), value) for value in neutral):
                    kept = " or ".join(str(value) for value in neutral if value is not None)
                    message = f"{name} is not supported here as it is; leave it out{kept and f', or send {kept}'}"
                    raise ApiError(400, message, "unsupported_value", name)
        return found


def parse(body: bytes) -> ChatRequest:
    """The request in `body`.

    Raises:
        ApiError: 400, naming the field and never its value.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, found["loc"])) or None
        code = "invalid_json" if found["type"] == "json_invalid" else "invalid_value"
        raise ApiError(400, f"{param or 'the body'}: {found['msg']}", code, param) from None
