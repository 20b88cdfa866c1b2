"""Freezing under LoRA: what of an adapter would change frozen neurons is held at zero.

PEFT leaves a weight as it is and adds scaling * B @ A to it. A frozen row of the weight stays as it is while that row
of B is zero, a frozen column while that column of A is. So a choice of weights becomes one of adapters, and the freezer
holds the chosen parts of those as it holds any other element.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from neurofreeze.distributed import all_or_none, gather
from neurofreeze.engines import Engine, Shard
from neurofreeze.errors import FreezeError, NeuroFreezeWarning
from neurofreeze.neurons import ELEMENTS, Selection
from neurofreeze.pieces import Piece, cut


class Part(NamedTuple):
    """What of one parameter belongs to frozen neurons.

    Of a factor of an adapter, `partner` names the other one, without which it changes nothing; a bias has none.
    """

    selection: Selection
    shape: tuple[int, ...]
    partner: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        axis, index = self.selection
        if axis == ELEMENTS or len(self.shape) == 1:
            return len(index)
        return len(index) * self.shape[-1 if axis == 0 else -2]


@dataclass(frozen=True)
class Adapters:
    """The LoRA adapters of a model, as far as they concern frozen neurons; false for a model without any.

    Attributes:
        parts: parameter name -> what of it is held at zero.
        adapted: masked weights of the base that have an adapter.
        quantized: masked weights of the base whose elements are out of reach, since they are quantized.
        trained: name of every parameter that requires a gradient -> its number of elements.
        active: each adapted layer, and the names of the adapters that it used when freezing began.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    adapted: tuple[str, ...] = ()
    quantized: tuple[str, ...] = ()
    trained: dict[str, int] = field(default_factory=dict)
    active: tuple[tuple[Any, tuple[str, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.active)

    @property
    def selections(self) -> dict[str, Selection]:
        """Parameter name -> what of it is held at zero."""
        return {name: part.selection for name, part in self.parts.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> its whole shape."""
        return {name: part.shape for name, part in self.parts.items()}

    def add_to(self, selections: Mapping[str, Selection]) -> dict[str, Selection]:
        """What to freeze in all: the parts of adapters, and `selections` of the base as far as they are in reach."""
        base = {name: selection for name, selection in selections.items() if name not in self.quantized}
        return {**base, **self.selections}

    def clear(self, weights: Sequence[Piece[Shard]], engine: Engine) -> None:
        """Set the parts to zero, which leaves the model as it is while the other factor is zero. Collective.

        Args:
            weights: what is frozen on this rank.
            engine: where the factors are.

        Raises:
            FreezeError: on every rank, if an adapter changes frozen neurons already.
        """
        if not self:
            return
        with all_or_none("freeze"):
            shards = engine.shards(self.parts)
            pieces = list(cut(shards, self.selections))
            partners = engine.shards({part.partner for part in self.parts.values() if part.partner})
            wholes = cut(partners, {shard.name: Selection(0, np.arange(shard.shape[0])) for shard in partners})
            held = {f"part of {piece.of.name}" for piece in pieces if piece.read(piece.of.master()).any()}
            other = {piece.of.name for piece in wholes if piece.read(piece.of.master()).any()}
            negative = any(_negative_zeros(piece) for piece in weights if piece.of.name in self.adapted)
        everywhere = gather((held | other, negative))
        self._require_unused({name for found, _ in everywhere for name in found})
        for piece in pieces:
            piece.zero(piece.of.master())
            piece.zero(piece.of.low_precision())
        for shard in shards:
            self._zero_whole(shard)
        if any(negative for _, negative in everywhere):
            warnings.warn(
                "some frozen weights are -0.0, which PEFT's merge turns into 0.0: equal, but other bits; merge with "
                "neurofreeze.merging.merge_adapters(model, mask), which keeps them",
                NeuroFreezeWarning,
                stacklevel=3,
            )

    def require_intact(self, weights: Sequence[Piece[Shard]]) -> None:
        """Raise FreezeError unless the parts are zero on this rank, and the same adapters in use as at the start."""
        for piece in weights:
            if piece.of.name in self.parts and piece.read(piece.of.master()).any():
                raise FreezeError(
                    f"{piece.of.name}: what belongs to frozen neurons is not zero any more; something wrote to it "
                    "outside optimizer.step(), or loaded another adapter"
                )
        for layer, names in self.active:
            if tuple(layer.active_adapters) != names:
                raise FreezeError(
                    f"the active adapters are {list(layer.active_adapters)}, when freezing began they were "
                    f"{list(names)}; set them before freezing"
                )

    def _require_unused(self, nonzero: set[str]) -> None:
        used = [
            name
            for name, part in self.parts.items()
            if f"part of {name}" in nonzero and (part.partner is None or part.partner in nonzero)
        ]
        if used:
            raise FreezeError(
                f"the adapter changes frozen neurons already: {used[0]} is not zero where it belongs to them, as are "
                f"{len(used) - 1} others of {len(self.parts)}. It was trained without this mask, or initialised in a "
                "way that edits the base (PiSSA, OLoRA, CorDA, LoftQ ...). Use a fresh adapter with "
                "init_lora_weights=True; to keep this one's training, merge it first and choose the merged model as "
                "base"
            )

    def _zero_whole(self, shard: Shard) -> None:
        # ZeRO's ranks hold slices of masters, maybe none of this one, but compute with whole parameters.
        axis, index = self.parts[shard.name].selection
        whole = shard.parameter.data
        if not isinstance(whole, DTensor) and whole.shape == shard.shape:
            whole.index_fill_(axis, torch.from_numpy(index).to(whole.device), 0)


def _negative_zeros(piece: Piece[Shard]) -> bool:
    values = piece.read(piece.of.master())
    return bool((values.signbit() & (values == 0)).any())
