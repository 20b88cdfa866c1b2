"""What strategies with passes of their own share: turns, watching activations, and log-probabilities of answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FullyShardedDataParallel

from neurofreeze.activations import Flow, See, tapped
from neurofreeze.data.batches import Batch
from neurofreeze.distributed import gather, rank, world_size
from neurofreeze.errors import DataError
from neurofreeze.neurons import Site


def unwrapped(model: Any) -> Any:
    """The model without DDP or a DeepSpeed engine, which expect every forward pass to end in their kind of backward."""
    return model if isinstance(model, FullyShardedDataParallel) else getattr(model, "module", model)


def device(model: Any) -> torch.device:
    """Where a model's inputs may be: accelerate takes them on to where it brings offloaded parameters."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def require_some(batches: Sequence[Batch]) -> Sequence[Batch]:
    """The batches.

    Raises:
        DataError: if there is none.
    """
    if not batches:
        raise DataError("the calibration set is empty; expected at least one prompt with its answer")
    return batches


def share(batches: Sequence[Batch]) -> Sequence[Batch]:
    """The batches that fall to this rank, for models that every rank has whole."""
    ranks = world_size()
    # A process may have a rank's number before, or without, being connected to others; then all batches are its own.
    return batches if ranks == 1 else batches[rank() :: ranks]


def turns(batches: Sequence[Batch]) -> Iterator[tuple[Batch, bool]]:
    """The batches of this rank, and whether each counts: sharded models need every rank in every pass."""
    own = share(batches)
    for turn in range(-(-len(batches) // world_size())):
        yield (own[turn], True) if turn < len(own) else (batches[0], False)


def summed(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors on the CPU, each added up over the ranks that have it, in their order. Collective."""
    totals: dict[str, torch.Tensor] = {}
    for copy in gather({name: value.cpu() for name, value in values.items()}):
        for name, value in copy.items():
            totals[name] = totals[name] + value if name in totals else value
    return totals


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off; the training mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def watching(model: Any, sites: Iterable[Site], see: Callable[[str, Flow], None]) -> Iterator[None]:
    """Call `see(name of the site, activations)` whenever they flow."""

    def named(name: str) -> See:
        return lambda flow: see(name, flow)

    with tapped(model, {(site.module, "input"): named(site.name) for site in sites}):
        yield


def answers(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every token of the answers, float32 or wider [tokens], and its row, int64 [tokens]."""
    batch = batch.to(device(model))
    chosen = batch.response_mask[:, 1:]
    columns = chosen.any(0).nonzero()[:, 0]
    # The vocabulary is the widest matrix of a small model: no logits where no row has an answer.
    few = "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters
    options = {"logits_to_keep": columns} if few else {}
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **options).logits
    rows, kept = (index.to(logits.device) for index in chosen[:, columns].nonzero(as_tuple=True))
    tokens = batch.input_ids[:, 1:][chosen].to(logits.device)
    found = logits[rows, kept if few else columns.to(logits.device)[kept]]
    log_probs = F.log_softmax(found, dim=-1, dtype=torch.promote_types(found.dtype, torch.float32))
    return log_probs.gather(-1, tokens[:, None])[:, 0], rows
