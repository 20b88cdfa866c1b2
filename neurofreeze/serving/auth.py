"""Who may ask: callers that show the token, or, where there is none, programs on this machine."""

from __future__ import annotations

import hashlib
import hmac
import os
from urllib.parse import urlsplit

from starlette.requests import Request

from neurofreeze.config.serve import is_loopback
from neurofreeze.serving.errors import ApiError


class Auth:
    """A dependency of the routes that tell or do anything.

    Args:
        token_env: name of the environment variable with the token; None: there is none.
    """

    def __init__(self, token_env: str | None) -> None:
        # The digest only: the token is then in no attribute that a traceback could show.
        self._digest = None if token_env is None else _digest(os.environ[token_env].strip().encode())

    async def __call__(self, request: Request) -> None:
        """Let the request pass.

        Raises:
            ApiError: 401 without the token; 403 where there is none and the request names another host than this
                machine, as a web page does that has its own name point here.
        """
        if self._digest is None:
            if not is_loopback(_host(request)):
                raise ApiError(403, "without a token, requests must be to 127.0.0.1, ::1 or localhost", "wrong_host")
            return
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        # Digests have one length, and comparing them takes the same time wherever they differ.
        found = hmac.compare_digest(_digest(token.strip().encode("latin-1")), self._digest)
        if kind.lower() != "bearer" or not found:
            raise ApiError(
                401,
                "expected the header Authorization: Bearer TOKEN with this server's token",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _host(request: Request) -> str:
    # Not of request.url: where the header is no host, that has the server's own address.
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:  # a header that is no host
        return ""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
