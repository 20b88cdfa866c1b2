"""A headless Chromium that is asked about its page while the page lives, through its DevTools protocol."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
    "--disable-extensions",
]


class Page:
    """One page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0

    async def evaluate(self, script: str) -> Any:
        """What a JavaScript expression gives, as JSON."""
        self._number += 1
        parameters = {"expression": script, "returnByValue": True}
        await self._socket.send_json({"id": self._number, "method": "Runtime.evaluate", "params": parameters})
        while (found := await self._socket.receive_json(timeout=60)).get("id") != self._number:
            pass
        assert "exceptionDetails" not in found["result"], found
        return found["result"]["result"].get("value")

    async def until(self, script: str, seconds: float = 60.0) -> None:
        """Wait for an expression to be true."""
        for _ in range(int(seconds * 10)):
            if await self.evaluate(script):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {script}\n{await self.evaluate('document.body.innerText')}")


@asynccontextmanager
async def browsing(chromium: str, address: str, profile: Path) -> AsyncIterator[Page]:
    """The page at an address, in a browser that ends with the block."""
    command = [chromium, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", address]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        socket = await _page_socket(profile / "DevToolsActivePort", address)
        async with aiohttp.ClientSession() as session, session.ws_connect(socket, max_msg_size=0) as connected:
            yield Page(connected)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _page_socket(port_file: Path, address: str) -> str:
    for _ in range(600):
        if port_file.is_file() and (lines := port_file.read_text().split()):
            pages = httpx.get(f"http://127.0.0.1:{lines[0]}/json/list").json()
            for page in pages:
                if page["type"] == "page" and page["url"].startswith(address):
                    return str(page["webSocketDebuggerUrl"])
        await asyncio.sleep(0.1)
    raise AssertionError("Chromium did not open the page within a minute")
