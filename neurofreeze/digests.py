"""The fingerprint of all frozen elements, from what each rank holds of each copy of the model."""

from __future__ import annotations

from collections.abc import Iterable

from neurofreeze import fingerprint
from neurofreeze.distributed import gather
from neurofreeze.engines.base import Replica, Shard
from neurofreeze.errors import FreezeError
from neurofreeze.pieces import Piece

Digests = dict[Replica, int]


def local_digests(pieces: Iterable[Piece[Shard]]) -> Digests:
    """Digest of the frozen elements that this rank holds of each copy of the model."""
    found: Digests = {}
    for piece in pieces:
        found[piece.of.replica] = found.get(piece.of.replica, 0) + piece.digest(piece.of.master())
    return found


def whole_fingerprint(local: Digests) -> str:
    """Fingerprint of all frozen elements of the model, the same on every rank. Collective.

    Raises:
        FreezeError: on every rank, if two copies of the same elements differ.
    """
    copies: dict[str, dict[int, int]] = {}
    for contribution in gather(local):
        for (group, index), value in contribution.items():
            sums = copies.setdefault(group, {})
            sums[index] = (sums.get(index, 0) + value) % fingerprint.MODULUS
    for sums in copies.values():
        if len(set(sums.values())) > 1:
            raise FreezeError(
                f"the fingerprint of the frozen weights differs between ranks ({sums}); all must start "
                "from the same weights, and nothing may write to them on one rank alone"
            )
    return fingerprint.text(sum(next(iter(sums.values())) for sums in copies.values()))
