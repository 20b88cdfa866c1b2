"""The feed: what was before, what comes next, slow readers, and the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from neurofreeze.guard.events import Event
from neurofreeze.guard.monitor import Verdict
from neurofreeze.serving import feed as module
from neurofreeze.serving.feed import KEPT, Feed
from neurofreeze.serving.jobs import Job, Sampling

JOB = Job([7, 8, 9], "private words", Sampling(), 5, lambda _: None)


def event(step: int = 0) -> Event:
    return Event(3, step, "probe", 1.5, 1.0, "refuse", "blocked")


def reading(feed: Feed, most: int, then: Callable[[], None] = lambda: None) -> list[Any]:
    """The first `most` things that a reader gets; `then` is called once it waits."""

    async def read() -> list[Any]:
        found: list[Any] = []
        reader = feed.read()
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        then()
        while True:
            try:
                found.append(await asyncio.wait_for(waiting, 10))
            except StopAsyncIteration:
                return found
            if len(found) == most:
                await reader.aclose()
                return found
            waiting = asyncio.ensure_future(anext(reader))

    return asyncio.run(read())


def test_a_reader_gets_what_was_before_and_then_what_comes() -> None:
    feed = Feed()
    feed.event(JOB, event(1))
    found = reading(feed, 2, lambda: feed.verdict(JOB, Verdict(4, 9.0, 0.2, {"psi": 0.5}, "layers.0.mlp/1", 2.0, ())))
    assert [entry["kind"] for entry in found] == ["guard", "monitor"]
    assert (found[0]["step"], found[0]["request"]) == (1, JOB.id)
    assert found[1]["prompt"] == 4
    assert "row" not in found[0]
    assert JOB.request not in json.dumps(found)


def test_memory_is_bounded() -> None:
    feed = Feed()
    for step in range(3 * KEPT):
        feed.event(JOB, event(step))
    assert [entry["step"] for entry in feed.recent] == list(range(2 * KEPT, 3 * KEPT))


def test_a_slow_reader_loses_the_oldest_and_holds_nobody_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_BEHIND", 3)
    feed = Feed()

    def many() -> None:
        for step in range(10):
            feed.event(JOB, event(step))

    assert [entry["step"] for entry in reading(feed, 3, many)] == [7, 8, 9]


def test_silence_shows_life(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_ALIVE", 0.01)
    assert reading(Feed(), 2) == [None, None]


def test_a_closed_feed_sends_its_readers_away() -> None:
    feed = Feed()

    async def read() -> list[Any]:
        waiting = asyncio.ensure_future(_all(feed))
        await asyncio.sleep(0.05)
        feed.close()
        return await asyncio.wait_for(waiting, 10)

    assert asyncio.run(read()) == []
    assert reading(feed, 1) == []


async def _all(feed: Feed) -> list[Any]:
    return [found async for found in feed.read()]
