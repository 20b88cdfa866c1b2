"""Running a test function on several ranks; used by our tests and meant for users' own."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_COLLECTIVE_TIMEOUT = timedelta(seconds=120)
_GRACE = 5.0  # seconds in which the other ranks may say why they failed too
_LONGEST = 6000  # characters kept of a traceback


def run_distributed_test(
    function: Callable[..., None],
    world_size: int = 2,
    backend: str = "gloo",
    args: tuple[Any, ...] = (),
    timeout: float = 600.0,
) -> None:
    """Call `function(*args)` in `world_size` new processes that form one process group.

    Every rank is a new interpreter that imports all it needs, which takes seconds. A session of many tests saves that
    by `multiprocessing.set_start_method("forkserver")` and `set_forkserver_preload`: ranks are then copies of a process
    that has imported it once, and has none of the threads of the tests' own process.

    Args:
        function: a module-level function; it finds its rank with torch.distributed.
        world_size: number of ranks, all on this machine.
        backend: of torch.distributed.
        args: passed to every rank.
        timeout: seconds for all of it.

    Raises:
        AssertionError: if a rank raised, died or did not end in time, with the tracebacks there are.
    """
    context = process_context()
    done = context.Event()
    # A file, not a port: a free port may be taken again before rank 0 binds it.
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        ranks = [
            context.Process(
                target=_worker,
                args=(_environment(rank, world_size), backend, rendezvous, function, args, writer, done),
            )
            for rank, (_, writer) in enumerate(pipes)
        ]
        for process, (_, writer) in zip(ranks, pipes, strict=True):
            process.start()
            writer.close()
        try:
            failures = _outcomes([reader for reader, _ in pipes], ranks, timeout)
        finally:
            done.set()
            for process in ranks:
                process.join(_GRACE)
                process.kill()
    if failures:
        raise AssertionError("\n".join(f"rank {rank}: {failures[rank]}" for rank in sorted(failures)))


def process_context() -> Any:
    """How to start processes with none of this one's threads: by the fork server if that is the start method set.

    Otherwise they are new interpreters. Never copies of this process, which might wait for threads they do not have.
    """
    forked = mp.get_start_method(allow_none=True) == "forkserver"
    return mp.get_context("forkserver" if forked else "spawn")


def _outcomes(readers: list[Any], ranks: list[Any], timeout: float) -> dict[int, str]:
    """Rank -> what went wrong. Returns when all ranks have reported, or soon after the first failure."""
    waiting: dict[Any, int] = dict(zip(readers, range(len(readers)), strict=True))
    failures: dict[int, str] = {}
    deadline = time.monotonic() + timeout
    while waiting:
        ready: list[Any] = list(wait(list(waiting), max(0.0, deadline - time.monotonic())))
        if not ready:
            break
        for reader in ready:
            rank = waiting.pop(reader)
            try:
                message = reader.recv()
            except EOFError:
                message = _death(ranks[rank])
            if message is not None:
                failures[rank] = message
                deadline = min(deadline, time.monotonic() + _GRACE)
    if waiting and not failures:
        failures = dict.fromkeys(waiting.values(), f"still running after {timeout:.0f} s")
    return failures


def _death(process: Any) -> str:
    """What is known of a rank that has closed its pipe and said nothing."""
    process.join(_GRACE)
    code = process.exitcode
    if code is None:
        return f"closed its pipe and was still running after {_GRACE:.0f} s"
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code} before it reported"


def _environment(rank: int, world_size: int) -> dict[str, str]:
    """What a launcher sets, and all of this process's, which a fork server that is there already does not know."""
    return {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}


def _worker(
    environment: dict[str, str],
    backend: str,
    rendezvous: str,
    function: Callable[..., None],
    args: tuple[Any, ...],
    outcome: Any,
    done: Any,
) -> None:
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ |= environment
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    try:
        dist.init_process_group(
            backend, init_method=rendezvous, rank=rank, world_size=world_size, timeout=_COLLECTIVE_TIMEOUT
        )
        function(*args)
        outcome.send(None)
    except BaseException:
        outcome.send(f"raised\n{traceback.format_exc()[-_LONGEST:]}")
    # No rank leaves while another may still hear from it, and none goes through the interpreter's shutdown, where a
    # process group that something still refers to may abort.
    done.wait()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
