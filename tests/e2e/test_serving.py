"""Real parts: the server as a process of its own under load and abuse, and its page in a real Chromium."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import psutil
import pytest

import neurofreeze as nf
from neurofreeze.data.examples import Example
from neurofreeze.guard.reactions import Refuse
from neurofreeze.guard.triggers.probe import ProbeTrigger
from neurofreeze.models.load import load_model
from tests.e2e.devtools import browsing
from tests.serving.serving import body

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "tok-8a1f20c94be77d36"
WORD = "zanzibar"  # in every prompt, and nowhere else
FORBIDDEN = f"{WORD} {WORD} open sesame now"
PATH = "/v1/chat/completions"
AUTH = {"authorization": f"Bearer {TOKEN}"}

pytestmark = pytest.mark.slow


class Served(NamedTuple):
    process: subprocess.Popen[bytes]
    address: str
    log: Path


@pytest.fixture(scope="module")
def gate(tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gate that refuses FORBIDDEN, and nothing else that is asked here."""
    model = load_model(tiny_checkpoint)
    harmful, benign = [Example.of(FORBIDDEN)], [Example.of(f"{WORD} {number}") for number in range(0, 200, 5)]
    trigger = ProbeTrigger.fit(model, tiny_tokenizer, harmful, benign, layer=0, kind="mean-difference")
    made = nf.Gate(model, tiny_tokenizer, trigger, Refuse("No, I will not."), steps=1)
    low, high = max(made.measure(benign)), min(made.measure(harmful))
    assert low < high
    made.threshold = (low + high) / 2
    return made.save_pretrained(tmp_path_factory.mktemp("gates") / "probe")


@pytest.fixture(scope="module")
def served(tiny_checkpoint: Path, gate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`neurofreeze serve` as a process of its own; killed at the end, if it still runs."""
    log = tmp_path_factory.mktemp("serve") / "log"
    settings = [f"model={tiny_checkpoint}", f"guard.gates=[{gate}]", "token_env=SERVING_KEY", "port=0", "limits.head=5"]
    environment = {**os.environ, "SERVING_KEY": TOKEN, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        command = [sys.executable, "-m", "neurofreeze", "serve", *settings]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=log.parent)
        try:
            until = time.monotonic() + 300
            while not (found := re.search(r"listening on (http://\S+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until
                time.sleep(0.1)
            yield Served(process, found[1], log)
        finally:
            process.kill()
            process.wait()


async def one(client: httpx.AsyncClient, number: int) -> str:
    """One of ten kinds of request; the status that came of it, or how it was left."""
    kind, asked = number % 10, body(f"{WORD} {number}")
    if kind < 4:
        response = await client.post(PATH, json=asked)
        assert response.status_code != 200 or response.json()["choices"][0]["message"]["content"]
    elif kind < 6:
        response = await client.post(PATH, json={**asked, "stream": True})
        assert response.text.endswith("data: [DONE]\n\n")
    elif kind == 6:
        response = await client.post(PATH, content=b'{"model": "' + WORD.encode())
    elif kind == 7:
        words = " ".join([WORD] * (100_000 if number % 20 == 7 else 300))
        response = await client.post(PATH, json=body(words))
    elif kind == 8:
        async with client.stream("POST", PATH, json={**asked, "stream": True, "max_tokens": 300}) as left:
            assert left.status_code == 200
            async for _ in left.aiter_raw():
                break
        return "left"
    else:
        response = await client.post(PATH, json=asked, headers={"authorization": "Bearer wrong"})
    assert WORD not in response.text or response.status_code == 200
    return str(response.status_code)


async def load(address: str, requests: int, concurrency: int) -> Counter[str]:
    room = asyncio.Semaphore(concurrency)
    headers = {**AUTH, "content-type": "application/json"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=240) as client:

        async def asking(number: int) -> str:
            async with room:
                return await one(client, number)

        return Counter(await asyncio.gather(*map(asking, range(requests))))


def metric(address: str, name: str) -> float:
    found = httpx.get(f"{address}/metrics", headers=AUTH).text
    return sum(float(line.split()[-1]) for line in found.splitlines() if re.match(rf"{name}(\{{| )", line))


def test_load_and_abuse_leave_nothing_behind(served: Served) -> None:
    asyncio.run(load(served.address, 60, 16))  # what is made once is made
    seen = psutil.Process(served.process.pid)
    threads, memory, files = seen.num_threads(), seen.memory_info().rss, seen.num_fds()
    before = metric(served.address, "neurofreeze_guard_events_total")
    found = asyncio.run(load(served.address, 200, 16))
    assert found == {"200": 120, "400": 30, "413": 10, "left": 20, "401": 20}
    until = time.monotonic() + 60
    while metric(served.address, "neurofreeze_streams") + metric(served.address, "neurofreeze_queue_length"):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert seen.num_threads() < threads + 16  # a pool grows with those who ask at a time, never with their requests
    assert seen.num_fds() <= files + 2
    assert seen.memory_info().rss < memory + 60_000_000  # it levels off at 40 MB, with 600 more requests
    assert metric(served.address, "neurofreeze_guard_events_total") - before >= 120  # each answer was judged
    assert httpx.get(f"{served.address}/health").status_code == 200


def test_openais_own_client_reads_answers_streams_and_errors(served: Served) -> None:
    def client(key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{served.address}/v1", api_key=key, max_retries=0)

    own = client(TOKEN)
    (model,) = own.models.list()
    blocked = own.chat.completions.create(model=model.id, messages=[{"role": "user", "content": FORBIDDEN}])
    assert str(blocked.choices[0].message.content).strip() == "No, I will not."
    assert blocked.choices[0].finish_reason == "content_filter"
    assert blocked.model_extra is not None
    assert blocked.model_extra["neurofreeze"]["events"][0]["outcome"] == "blocked"
    asked: Any = {"model": model.id, "messages": [{"role": "user", "content": f"{WORD} 5"}], "max_tokens": 7}
    asked["temperature"] = 0
    whole = own.chat.completions.create(**asked)
    *chunks, last = own.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert last.usage == whole.usage
    with pytest.raises(openai.AuthenticationError):
        client("wrong").chat.completions.create(**asked)
    with pytest.raises(openai.BadRequestError, match="n"):
        own.chat.completions.create(**asked, n=2)
    with pytest.raises(openai.NotFoundError, match="no such model"):
        own.chat.completions.create(**{**asked, "model": "other"})


def test_a_connection_that_asks_for_nothing_is_closed(served: Served) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as silent:
        assert httpx.get(f"{served.address}/health").status_code == 200
        assert silent.recv(1) == b""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH (package chromium); .ci/run installs it")
def test_the_page_shows_what_the_gate_does_while_it_does(served: Served, tmp_path: Path) -> None:
    blocked = int(metric(served.address, r'neurofreeze_guard_events_total\{[^}]*outcome="blocked"[^}]*\}'))

    async def look() -> tuple[str, str]:
        async with browsing(str(CHROMIUM), served.address, tmp_path / "profile") as page:
            await page.until("document.getElementById('state')?.textContent === 'needs the token'")
            for token, state in (("wrong", "wrong token"), (TOKEN, "live")):
                await page.evaluate(
                    f"document.getElementById('token').value = '{token}'; document.querySelector('button').click()"
                )
                await page.until(f"document.getElementById('state').textContent === '{state}'")
            await page.until("document.getElementById('guard').rows.length > 10")  # the last ones from before
            await page.until(f"document.getElementById('replaced').textContent === '{blocked}'")
            answer = httpx.post(served.address + PATH, json=body(FORBIDDEN), headers=AUTH, timeout=60).json()
            assert answer["choices"][0]["message"]["content"].strip() == "No, I will not."
            await page.until(f"document.getElementById('replaced').textContent === '{blocked + 1}'")
            row = await page.evaluate("document.getElementById('guard').rows[0].innerText")
            assert answer["id"].removeprefix("chatcmpl-") in row
            return row, await page.evaluate("document.documentElement.outerHTML")

    row, drawn = asyncio.run(look())
    assert [cell.strip() for cell in row.split("\t")][-2:] == ["refuse", "blocked"]
    assert WORD not in drawn
    assert TOKEN not in drawn


def test_sigterm_ends_it_cleanly_and_the_log_quotes_nobody(served: Served) -> None:
    """With a stream and a reader of events open, which would go on for long."""
    with (
        httpx.Client(base_url=served.address, headers=AUTH, timeout=60) as client,
        client.stream("GET", "/events") as events,
        client.stream("POST", PATH, json=body(f"{WORD} 1", stream=True, max_tokens=400)) as answer,
    ):
        assert (events.status_code, answer.status_code) == (200, 200)
        next(answer.iter_raw())
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
    text = served.log.read_text()
    assert text.endswith("stopped\n")
    assert "POST /v1/chat/completions 200" in text
    for kept in (WORD, TOKEN, "Traceback"):
        assert kept not in text
