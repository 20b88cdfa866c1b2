"""Running a test function on several ranks; used by our tests and meant for users' own."""

from __future__ import annotations

import gc
import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_TIMEOUT = timedelta(seconds=120)
# Characters of a traceback. Nobody reads the pipe before the ranks end, and it holds 64 KiB.
_LONGEST = 6000


def run_distributed_test(
    function: Callable[..., None], world_size: int = 2, backend: str = "gloo", args: tuple[Any, ...] = ()
) -> None:
    """Call `function(*args)` in `world_size` new processes that form one process group.

    Args:
        function: a module-level function; it finds its rank with torch.distributed.
        world_size: number of ranks, all on this machine.
        backend: of torch.distributed.
        args: passed to every rank.

    Raises:
        AssertionError: if a rank raised, with that rank's traceback.
    """
    context: Any = mp.get_context("spawn")
    errors = context.SimpleQueue()
    rendezvous = f"tcp://127.0.0.1:{_free_port()}"
    ranks = [
        context.Process(target=_worker, args=(rank, world_size, backend, rendezvous, function, args, errors))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(_TIMEOUT.total_seconds() * 2)
    alive = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
    failures = []
    while not errors.empty():
        failures.append(errors.get())
    if failures or alive or any(process.exitcode for process in ranks):
        codes = [process.exitcode for process in ranks]
        raise AssertionError("\n".join([f"exit codes {codes}, still running: {alive}", *failures]))


def _worker(
    rank: int,
    world_size: int,
    backend: str,
    rendezvous: str,
    function: Callable[..., None],
    args: tuple[Any, ...],
    errors: Any,
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    try:
        function(*args)
    except BaseException:
        errors.put(f"rank {rank}:\n{traceback.format_exc()[-_LONGEST:]}")
        raise SystemExit(1) from None
    finally:
        # Hooks keep models, and so the group, alive in reference cycles; one that outlives the interpreter may abort.
        gc.collect()
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
