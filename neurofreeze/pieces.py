"""The frozen rows or columns of one block of a 1-D storage, and what can be done to them in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from neurofreeze import fingerprint
from neurofreeze.errors import FreezeError
from neurofreeze.geometry import Block, chosen
from neurofreeze.neurons import Selection


class Located(Protocol):
    """A shard or gradient: what of a parameter is stored here, and where in the parameter it belongs."""

    name: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]


T = TypeVar("T", bound=Located)


@dataclass
class Piece(Generic[T]):
    """Rows (axis 0) or columns (axis 1) `index` of `block`, int64, counted from the block's origin."""

    of: T
    block: Block
    axis: int
    index: torch.Tensor

    def zero(self, storage: torch.Tensor | None) -> None:
        """Set the frozen entries to zero."""
        # Filled, not multiplied by 0: inf * 0 is NaN.
        if storage is not None:
            self._view(storage).index_fill_(self.axis, self.index, 0)

    def read(self, storage: torch.Tensor) -> torch.Tensor:
        """A copy of the frozen entries."""
        return self._view(storage).index_select(self.axis, self.index)

    def write(self, storage: torch.Tensor, values: torch.Tensor) -> None:
        """Put `values` where the frozen entries are."""
        self._view(storage).index_copy_(self.axis, self.index, values.to(storage.device, storage.dtype))

    def require_zero(self, storage: torch.Tensor | None, what: str) -> None:
        """Raise FreezeError unless the frozen entries are all zero."""
        if storage is None or not (found := self.read(storage)).any():
            return
        if not found.isfinite().all():
            # Clipping multiplies even zeros by a norm that is not finite.
            raise FreezeError(
                f"{self.of.name}: the {what} of frozen elements is not finite, as after a loss or a gradient norm that "
                "is none; training has diverged: lower the learning rate, or look at the data"
            )
        raise FreezeError(
            f"{self.of.name}: the {what} of frozen elements is not zero; if your code assigns it, call "
            "freezer.mask_gradients() before clipping, else this way of training cannot be frozen"
        )

    def digest(self, storage: torch.Tensor) -> int:
        """Digest of the frozen entries; see neurofreeze.fingerprint."""
        index = self.index.to(storage.device)
        return fingerprint.digest(self.of.name, self.of.shape, self.block, self.axis, index, storage)

    def _view(self, storage: torch.Tensor) -> torch.Tensor:
        if self.index.device != storage.device:
            self.index = self.index.to(storage.device)
        block = self.block
        return storage[block.offset : block.offset + block.numel].view(block.rows, block.cols)


def cut(located: Iterable[T], selections: Mapping[str, Selection]) -> Iterator[Piece[T]]:
    """The pieces of each shard or gradient that its selection names; those without any are left out."""
    for part in located:
        selection = selections[part.name]
        for block in part.blocks:
            for rectangle, (axis, index) in chosen(selection, block, part.shape):
                yield Piece(part, rectangle, axis, torch.from_numpy(index))
