"""Connections that send a request's head slowly, or not at all, to a real server on a socket."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from neurofreeze.serving.connections import prompt_connections
from tests.serving.serving import until

SECONDS = 0.8
HEAD = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"


async def at_once(scope: Any, receive: Any, send: Any) -> None:
    """An application that does not wait for bodies, and takes twice the limit if it is asked at /slow."""
    if scope["path"] == "/slow":
        await asyncio.sleep(2 * SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    settings = uvicorn.Config(at_once, http=prompt_connections(SECONDS), lifespan="off", log_config=None)
    server = uvicorn.Server(settings)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        until(lambda: server.started)
        yield listening.getsockname()
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def dripped(address: tuple[str, int], content: bytes, before: bytes = b"") -> float:
    """Seconds until the server closes a connection that sends `before` at once and the rest byte by byte."""
    began = time.monotonic()
    with socket.create_connection(address, timeout=0.05) as connection:
        connection.sendall(before)
        left = iter(content)
        while time.monotonic() < began + 10 * SECONDS:
            try:
                if (byte := next(left, None)) is not None:
                    connection.sendall(bytes([byte]))
                if not connection.recv(4096):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("content", "before"),
    [
        (b"", b""),
        (b"", HEAD[:20]),
        (HEAD[:-2] + b"X: " + b"x" * 400, b""),
        (b"x" * 400, HEAD),  # the body of a request that is answered already
        (HEAD[:-2] + b"X: " + b"x" * 400, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    ],
    ids=["silent", "cut", "slow", "slow body", "slow second"],
)
def test_who_does_not_come_to_the_point_is_sent_away(address: tuple[str, int], content: bytes, before: bytes) -> None:
    found: list[float] = []
    threads = [threading.Thread(target=lambda: found.append(dripped(address, content, before))) for _ in range(3)]
    for thread in threads:
        thread.start()
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}") as client:
        while any(thread.is_alive() for thread in threads):
            assert client.get("/").text == "ok"  # on one connection, for longer than the limit
            time.sleep(0.1)
    assert len(found) == 3
    assert all(0.9 * SECONDS < seconds < 4 * SECONDS for seconds in found), found


def test_an_answer_may_take_longer(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}") as client:
        assert client.get("/slow").text == "ok"
        assert client.get("/slow").text == "ok"
