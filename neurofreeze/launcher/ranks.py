"""The process group of a job's ranks, from what their launcher put into the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta

from neurofreeze.config.schema import Config
from neurofreeze.errors import ConfigError

# As torchrun sets them.
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Of a collective in training: an hour for the slowest rank to load a model or write a checkpoint.
_TIMEOUT = timedelta(hours=1)


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """Within the block all ranks of the job are one process group, and all but rank 0 show nothing.

    With backend=plain there is one rank and no group, whatever the launcher says.

    Raises:
        ConfigError: on every rank, if there are not as many as `cluster` names.
    """
    found = int(os.environ.get("WORLD_SIZE", "1"))
    if found != config.cluster.ranks:
        raise ConfigError(
            f"WORLD_SIZE is {found}, but cluster has nodes={config.cluster.nodes} and "
            f"ranks_per_node={config.cluster.ranks_per_node}; start {config.cluster.ranks} ranks, or set cluster "
            "to what is started"
        )
    if config.backend.name == "plain":
        with _environment({}):
            yield
        return
    given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if found > 1 and not {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= given.keys():
        raise ConfigError(
            f"WORLD_SIZE is {found}, but of RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT not all are set; start ranks "
            "with cluster=torchrun, cluster=slurm or torchrun itself"
        )
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    with _environment(given if found > 1 else {**single, "MASTER_PORT": "0"}), _group(alone=found == 1):
        yield


@contextmanager
def _group(alone: bool) -> Iterator[None]:
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    if gpu:
        # Where each rank is shown a GPU of its own, as by --gpus-per-task, that is number 0 of every rank; DeepSpeed
        # takes LOCAL_RANK for the number.
        os.environ["LOCAL_RANK"] = str(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    first = os.environ["RANK"] == "0"
    # What ranks tell each other goes over gloo also where tensors go over NCCL.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=_TIMEOUT)
    failed = True
    try:
        # What libraries print, every rank would.
        with open(os.devnull, "w") as nowhere, nullcontext() if first else redirect_stdout(nowhere):
            yield
        failed = False
    finally:
        # A rank that fails must not wait for the others, which may be waiting for it.
        if alone or not failed:
            dist.destroy_process_group()


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Within the block the launcher's variables are these and no others: libraries form groups where they see them."""
    before = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    os.environ |= wanted
    try:
        yield
    finally:
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ |= before
