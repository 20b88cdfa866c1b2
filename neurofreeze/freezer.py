"""Freezer: the guarantee.

After any number of optimizer steps every frozen element is bit-identical to before, the clip norm counts only
trainable elements, and the moments of frozen elements are exactly zero; or training stops with an error on every rank.

Four things make it so, in the order of a training step: gradients of frozen elements are zeroed as they are
accumulated (so the norm is right and moments stay zero); before the optimizer steps, the frozen elements are copied;
after it they are put back (weight decay moves a weight whose gradient is zero); and now and then a fingerprint of all
frozen bits is compared with the one taken at the start.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from neurofreeze import fingerprint
from neurofreeze.distributed import all_or_none, rank, require_equal
from neurofreeze.engines import Engine, Shard, recognise
from neurofreeze.errors import FreezeError, MaskError, NeuroFreezeWarning
from neurofreeze.geometry import Block, local_index
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap, Selection
from neurofreeze.summary import FreezeSummary


def freeze(model: Any, optimizer: Any = None, mask: NeuronMask | None = None) -> Freezer:
    """Freeze the neurons that `mask` chooses, in this model, under this optimizer, from now on.

    Call it after the model is prepared for training (moved, wrapped, its checkpoint loaded) and before the first
    step. Works for one process and DDP, with any torch optimizer, gradient accumulation, clipping, mixed precision,
    gradient checkpointing and torch.compile. In a distributed job every rank must call it.

    Raises:
        MaskError: if the mask is for another model or other weights, or chooses no neuron.
        FreezeError: if freezing cannot be guaranteed: a parameter is missing or in no optimizer, or the engine is
            not supported. Raised on every rank.
    """
    with all_or_none("freeze"):
        given = _given(mask)
        engine = recognise(model, optimizer)
        neuron_map = NeuronMap.of(model, given.config.granularity)  # type: ignore[arg-type]
        given.check(neuron_map)
        if given.count == 0:
            raise MaskError("the mask chooses no neuron, so nothing would be frozen; train without freezing instead")
        if given.count == given.total:
            warnings.warn(
                f"the mask freezes all {given.total:,} neurons; only embeddings, norms and lm_head can train",
                NeuroFreezeWarning,
                stacklevel=2,
            )
        pieces = [
            _Piece(shard, block, selection.axis, torch.from_numpy(local_index(selection, block)))
            for shard, selection in _with_selections(engine, given, neuron_map)
            for block in shard.blocks
        ]
    require_equal("the mask", given.digest)
    return Freezer(engine, neuron_map, given, pieces)


class Freezer:
    """Keeps chosen elements of a model frozen until `detach()`. Made by `freeze()`."""

    def __init__(self, engine: Engine, neuron_map: NeuronMap, mask: NeuronMask, pieces: list[_Piece]) -> None:
        self.engine = engine
        self.mask = mask
        self._map = neuron_map
        self._pieces = pieces
        self._saved: list[torch.Tensor] = []
        self._unmasked: set[int] = set()
        self.clear_moments()
        self.fingerprint = self._digest()
        self._require_weights_of_the_mask()
        self._handles = [*self._hook_gradients(), *self._hook_steps()]

    def check(self) -> str:
        """Recompute the fingerprint of all frozen elements; returns it, 16 hexadecimal digits. Collective.

        Raises:
            FreezeError: on every rank, if any frozen element changed, a frozen moment is not zero, or the model no
                longer holds the parameters that were frozen.
        """
        with all_or_none("the check of frozen elements"):
            self._require_same_parameters()
            found = self._digest()
            if found != self.fingerprint:
                raise FreezeError(
                    f"frozen elements changed: their fingerprint is {found}, it was {self.fingerprint} when freezing "
                    "began; something wrote to the weights outside optimizer.step()"
                )
            self._require_zero_moments()
        return found

    def summary(self) -> FreezeSummary:
        """Print what is frozen and what trains, site by site (on rank 0), and return it."""
        found = FreezeSummary.of(self._map, self.mask)
        if rank() == 0:
            Console().print(found)
        return found

    def mask_gradients(self) -> None:
        """Zero the gradients of frozen elements now. Needed only by code that assigns `p.grad` itself."""
        for piece in self._pieces:
            piece.zero(piece.shard.gradient())
        self._unmasked.clear()

    def clear_moments(self) -> None:
        """Zero the optimizer state of frozen elements."""
        for piece in self._pieces:
            for moment in piece.shard.moments():
                piece.zero(moment)

    def detach(self) -> None:
        """Check once more and stop freezing. Collective."""
        self.check()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook_gradients(self) -> Iterator[Any]:
        by_parameter: dict[int, list[_Piece]] = {}
        for piece in self._pieces:
            by_parameter.setdefault(id(piece.shard.parameter), []).append(piece)
        self._unmasked = set(by_parameter)
        for key, pieces in by_parameter.items():
            parameter = pieces[0].shard.parameter
            yield parameter.register_post_accumulate_grad_hook(self._gradient_hook(key, pieces))

    def _gradient_hook(self, key: int, pieces: list[_Piece]) -> Any:
        def hook(_: torch.Tensor) -> None:
            for piece in pieces:
                piece.zero(piece.shard.gradient())
            self._unmasked.discard(key)

        return hook

    def _hook_steps(self) -> Iterator[Any]:
        for optimizer in self.engine.optimizers():
            yield optimizer.register_step_pre_hook(self._before_step)
            yield optimizer.register_step_post_hook(self._after_step)

    def _before_step(self, *_: Any) -> None:
        for piece in self._pieces:
            if id(piece.shard.parameter) in self._unmasked:
                piece.require_zero(piece.shard.gradient())
        self._saved = [piece.copy() for piece in self._pieces]

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for piece, saved in zip(self._pieces, self._saved, strict=True):
            piece.restore(saved)
        self._saved = []
        self._unmasked = {id(piece.shard.parameter) for piece in self._pieces}
        if _decay_enters_moments(optimizer):
            self.clear_moments()

    def _digest(self) -> str:
        return fingerprint.text(sum(piece.digest() for piece in self._pieces))

    def _require_weights_of_the_mask(self) -> None:
        with all_or_none("freeze"):
            if self.mask.config.fingerprint not in (None, self.fingerprint):
                raise MaskError(
                    f"field 'fingerprint': the mask was made on weights with {self.mask.config.fingerprint}, the model "
                    f"has {self.fingerprint} at the chosen neurons; load the weights the mask was made on, or "
                    "mask.with_config(fingerprint=None) if other weights are meant"
                )
        require_equal("the fingerprint of the frozen weights", self.fingerprint)

    def _require_same_parameters(self) -> None:
        held = {shard.name: shard.parameter for shard in self.engine.shards({p.shard.name for p in self._pieces})}
        for piece in self._pieces:
            if held[piece.shard.name] is not piece.shard.parameter:
                raise FreezeError(
                    f"{piece.shard.name} was replaced by another parameter after freezing began; freeze again, after "
                    "whatever rebuilds the model"
                )

    def _require_zero_moments(self) -> None:
        for piece in self._pieces:
            for moment in piece.shard.moments():
                piece.require_zero(moment, "optimizer state")


@dataclass
class _Piece:
    """The frozen rows or columns of one block of one shard."""

    shard: Shard
    block: Block
    axis: int
    index: torch.Tensor

    def zero(self, flat: torch.Tensor | None) -> None:
        # Filled, not multiplied by 0: inf * 0 is NaN.
        if flat is not None:
            self._view(flat).index_fill_(self.axis, self.index, 0)

    def copy(self) -> torch.Tensor:
        return self._view(self.shard.master()).index_select(self.axis, self.index)

    def restore(self, saved: torch.Tensor) -> None:
        self._view(self.shard.master()).index_copy_(self.axis, self.index, saved)

    def require_zero(self, flat: torch.Tensor | None, what: str = "gradient") -> None:
        if flat is not None and self._view(flat).index_select(self.axis, self.index).any():
            raise FreezeError(
                f"{self.shard.name}: the {what} of frozen elements is not zero; if your code assigns it, call "
                "freezer.mask_gradients() before clipping, else this way of training cannot be frozen"
            )

    def digest(self) -> int:
        flat = self.shard.master()
        index = self.index.to(flat.device)
        return fingerprint.digest(self.shard.name, self.shard.shape, self.block, self.axis, index, flat)

    def _view(self, flat: torch.Tensor) -> torch.Tensor:
        if self.index.device != flat.device:
            self.index = self.index.to(flat.device)
        block = self.block
        return flat[block.offset : block.offset + block.rows * block.cols].view(block.rows, block.cols)


def _given(mask: NeuronMask | None) -> NeuronMask:
    if mask is None:
        raise MaskError("freeze() was given no mask; pass mask=NeuronMask...")
    return mask


def _with_selections(engine: Engine, mask: NeuronMask, neuron_map: NeuronMap) -> Iterator[tuple[Shard, Selection]]:
    selections = mask.select(neuron_map)
    for shard in engine.shards(selections):
        if shard.shape != neuron_map.shapes[shard.name]:
            raise FreezeError(
                f"{shard.name} has shape {shard.shape}, its config says {neuron_map.shapes[shard.name]}; the model "
                "was changed after it was built"
            )
        yield shard, selections[shard.name]


def _decay_enters_moments(optimizer: torch.optim.Optimizer) -> bool:
    # Coupled weight decay (SGD, Adam, RMSprop ...) is added to the gradient and so reaches the moments; decoupled
    # decay (AdamW) does not. An optimizer that does not say is taken to be coupled.
    return any(
        group.get("weight_decay", 0) and not group.get("decoupled_weight_decay", False)
        for group in optimizer.param_groups
    )
