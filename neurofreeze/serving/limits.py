"""What is refused before it costs anything: bodies that are too large or too slow, and too many at a time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from neurofreeze.serving.errors import ApiError

READING = 10.0  # seconds that a body may take


async def read_body(request: Request, most: int) -> bytes:
    """The body of a JSON request.

    Raises:
        ApiError: 415 if it is no JSON, 413 if it is larger than `most` bytes, 408 if it does not come.
    """
    # Without it a page in a browser could send a request here without being asked who it is.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "expected the header Content-Type: application/json", "invalid_content_type")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most:
        raise _too_large(most)
    try:
        return await asyncio.wait_for(_read(request, most), READING)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not come within {READING:g} s", "timeout") from None
    except ClientDisconnect:
        raise ApiError(408, "the connection ended before the body did", "timeout") from None


class Places:
    """A number of places, each for one who holds it for a while.

    Args:
        most: places.
        what: they are for, for the message.
    """

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what = most, what
        self.held = 0

    def hold(self) -> None:
        """Hold a place.

        Raises:
            ApiError: 429 if there is none left.
        """
        if self.held >= self._most:
            raise ApiError(
                429, f"there are {self._most} {self._what} already", "too_many_streams", headers={"Retry-After": "1"}
            )
        self.held += 1

    def release(self) -> None:
        """Give a place back."""
        self.held -= 1


async def _read(request: Request, most: int) -> bytes:
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > most:
            raise _too_large(most)
    return bytes(found)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most} bytes, or does not say how many", "body_too_large")
