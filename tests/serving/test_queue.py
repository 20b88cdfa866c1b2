"""The queue: who is answered together, in which order, and when there is no room."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from neurofreeze.serving.errors import ApiError
from neurofreeze.serving.jobs import Job, Sampling
from neurofreeze.serving.queue import BatchQueue

GREEDY, WARM = Sampling(0.0), Sampling(0.7)


def job(sampling: Sampling = GREEDY) -> Job:
    return Job([1], "", sampling, 5, lambda _: None)


def filled(*jobs: Job, **settings: Any) -> BatchQueue:
    queue = BatchQueue(**{"most": 8, "size": 3, "wait": 0.0, **settings})
    for one in jobs:
        queue.put(one)
    return queue


def test_equal_settings_join_the_first_and_the_order_stays() -> None:
    jobs = [job(), job(WARM), job(), job(WARM), job(), job()]
    queue = filled(*jobs)
    assert queue.take() == [jobs[0], jobs[2], jobs[4]]
    assert queue.take() == [jobs[1], jobs[3]]
    assert queue.take() == [jobs[5]]


def test_a_seed_is_answered_alone_unless_nothing_is_drawn() -> None:
    seeded = [job(Sampling(0.7, seed=1)), job(Sampling(0.7, seed=1)), job(WARM)]
    queue = filled(*seeded)
    assert [queue.take() for _ in seeded] == [[one] for one in seeded]
    greedy = [job(Sampling(0.0, 0.5, seed=1)), job()]
    assert filled(*greedy).take() == greedy


def test_a_batch_fits_the_context_from_its_longest_prompt_to_its_longest_answer() -> None:
    long_prompt, long_answer, short = (
        Job([1] * n, "", GREEDY, m, lambda _: None) for n, m in ((40, 10), (5, 50), (5, 5))
    )
    queue = filled(long_prompt, long_answer, short, context=64)
    assert queue.take() == [long_prompt, short]
    assert queue.take() == [long_answer]
    assert filled(long_prompt, long_answer, context=90).take() == [long_prompt, long_answer]


def test_the_first_waits_a_little_for_others() -> None:
    queue = filled(job(), wait=5.0, size=2)
    threading.Timer(0.05, queue.put, [job()]).start()
    began = time.monotonic()
    assert len(queue.take()) == 2
    assert time.monotonic() - began < 4


def test_a_full_queue_says_when_to_come_again() -> None:
    jobs = [job(), job()]
    queue = filled(*jobs, most=2)
    with pytest.raises(ApiError) as caught:
        queue.put(job())
    assert caught.value.status == 429
    assert int(caught.value.headers["Retry-After"]) > 0
    jobs[0].cancelled = True
    assert len(queue) == 1
    queue.put(job())
    assert jobs[0] not in queue.take()


def test_a_closed_queue_lets_its_reader_go_and_nobody_in() -> None:
    queue = filled()
    taken: list[list[Job]] = []
    reader = threading.Thread(target=lambda: taken.append(queue.take()))
    reader.start()
    queue.close()
    reader.join(5)
    assert taken == [[]]
    with pytest.raises(ApiError) as caught:
        queue.put(job())
    assert caught.value.status == 503


def test_a_reader_goes_on_waiting_where_all_were_cancelled() -> None:
    cancelled = job()
    queue = filled(cancelled, wait=0.2)
    threading.Timer(0.02, setattr, [cancelled, "cancelled", True]).start()
    other = job()
    threading.Timer(0.5, queue.put, [other]).start()
    assert queue.take() == [other]
