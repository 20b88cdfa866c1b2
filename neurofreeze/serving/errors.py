"""Refusals of a request, in the shape of OpenAI's errors. None of them repeats what the caller sent."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

log = logging.getLogger("neurofreeze.serving")


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        message: what was found, what was expected.
        code: OpenAI's, or one of ours.
        param: the field of the request.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    @property
    def content(self) -> dict[str, Any]:
        """The body of the response."""
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.content, self.status, self.headers)


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def failed() -> ApiError:
    """What a caller learns of a failure on our side."""
    return ApiError(500, "the answer failed; the server's log says where", "internal_error")


def closing() -> ApiError:
    """What callers learn while the server stops."""
    return ApiError(503, "the server is stopping", "stopping")


def timed_out(seconds: float) -> ApiError:
    """An answer that took too long."""
    return ApiError(504, f"there was no whole answer within {seconds:g} s; ask for fewer tokens", "timeout")


def on_api_error(_: Request, error: Exception) -> JSONResponse:
    """The handler of ApiError."""
    assert isinstance(error, ApiError)
    return error.response


def on_http_error(_: Request, error: Exception) -> JSONResponse:
    """The handler of what the framework refuses: paths and methods that there are none of."""
    status = getattr(error, "status_code", 500)
    message = {404: "there is no such path", 405: "this path has no such method"}.get(status, "the request is refused")
    return ApiError(status, message, headers=getattr(error, "headers", None)).response


def log_failure(error: BaseException) -> None:
    """Where an error was raised; its message may quote a prompt, so that it is left out."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s, whose message is left out as it may quote a prompt, in\n%s", type(error).__name__, where)
