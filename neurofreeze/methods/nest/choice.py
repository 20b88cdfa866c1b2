"""Updates: which rows of which weights get an update vector, and which of them share one; kept without pickle."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neurofreeze.errors import ModelError
from neurofreeze.files import write_atomically
from neurofreeze.mask import MaskConfig, NeuronMask
from neurofreeze.methods.nest.clusters import cluster
from neurofreeze.methods.nest.rows import SafetyRows
from neurofreeze.neurons import BoolArray, IndexArray, NeuronMap

_ROWS, _VECTORS = ".rows", ".vectors"


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one weight and the vector that each of them gets.

    Attributes:
        rows: int64 [chosen], ascending and different.
        vectors: int64 [chosen], from 0 without gaps.
    """

    rows: IndexArray
    vectors: IndexArray

    @property
    def count(self) -> int:
        """Number of vectors."""
        return int(self.vectors.max()) + 1


class Updates:
    """All rows that get a vector, by weight.

    Raises:
        ModelError: if there are none, or rows or vectors are not numbered as `Rows` says.
    """

    def __init__(self, by_weight: Mapping[str, Rows]) -> None:
        if not by_weight:
            raise ModelError("no row gets an update vector; expected at least one")
        for name, found in by_weight.items():
            numbered = np.array_equal(np.unique(found.vectors), np.arange(found.count))
            ascending = len(found.rows) > 0 and found.rows[0] >= 0 and bool((np.diff(found.rows) > 0).all())
            if not (numbered and ascending and len(found.rows) == len(found.vectors)):
                raise ModelError(f"the rows of {name} must be different and ascending, and their vectors without gaps")
        self.by_weight = dict(by_weight)

    @property
    def rows(self) -> int:
        """How many rows get a vector."""
        return sum(len(found.rows) for found in self.by_weight.values())

    @property
    def vectors(self) -> int:
        """How many vectors there are."""
        return sum(found.count for found in self.by_weight.values())

    @property
    def digest(self) -> str:
        """SHA-256 over weights, rows and vectors."""
        h = hashlib.sha256()
        for name, found in sorted(self.by_weight.items()):
            h.update(f"{name} {len(found.rows)}".encode())
            h.update(found.rows.astype("<i8").tobytes() + found.vectors.astype("<i8").tobytes())
        return h.hexdigest()

    def parameters(self, neuron_map: NeuronMap) -> int:
        """How many numbers are trained: one vector has as many as a row."""
        return sum(found.count * neuron_map.shapes[name][1] for name, found in self.by_weight.items())

    def check(self, neuron_map: NeuronMap) -> None:
        """Raise ModelError unless the model has these weights with so many rows."""
        for name, found in self.by_weight.items():
            shape = neuron_map.shapes.get(name)
            if shape is None or len(shape) != 2 or found.rows[-1] >= shape[0]:
                raise ModelError(
                    f"the updates are for row {found.rows[-1]} of {name}, which has shape {shape} in this model; they "
                    "belong to another one"
                )

    def untouched(self, neuron_map: NeuronMap) -> NeuronMask:
        """The neurons none of whose rows gets a vector: what `nf.verify` must find as it was."""
        bits: dict[str, BoolArray] = {}
        for name, site in neuron_map.sites.items():
            bits[name] = np.ones(site.neurons, dtype=bool)
            for member in site.reads:
                if member.parameter in self.by_weight:
                    bits[name] &= ~np.isin(member.index, self.by_weight[member.parameter].rows).any(1)
        return NeuronMask(bits, MaskConfig.of(neuron_map, strategy={"name": "nest, untouched", "updates": self.digest}))

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        from safetensors.numpy import save

        arrays = dict(self._arrays())
        write_atomically(path, save(arrays))

    @classmethod
    def load(cls, path: Path) -> Updates:
        """What `save` wrote.

        Raises:
            ModelError: if it is missing or malformed.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(path)
            names = [name.removesuffix(_ROWS) for name in arrays if name.endswith(_ROWS)]
            found = {name: Rows(arrays.pop(name + _ROWS), arrays.pop(name + _VECTORS)) for name in sorted(names)}
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(f"{path} holds no rows and vectors ({error}); select them again") from error
        whole = all(
            array.dtype == np.int64 and array.ndim == 1 for rows in found.values() for array in vars(rows).values()
        )
        if arrays or not whole:
            raise ModelError(f"{path} holds more than int64 rows and vectors; select them again")
        return cls(found)

    def _arrays(self) -> Iterator[tuple[str, IndexArray]]:
        for name, found in self.by_weight.items():
            yield name + _ROWS, found.rows
            yield name + _VECTORS, found.vectors

    def __str__(self) -> str:
        return f"{self.vectors:,} vectors for {self.rows:,} rows of {len(self.by_weight):,} weights"


def choose(
    found: Sequence[SafetyRows], *, share: bool = True, most: int = 10, standardize: bool = True, seed: int = 0
) -> Updates:
    """One vector for each cluster of rows of a projection, or one for each row.

    Args:
        found: the safety rows of every projection.
        share: whether the rows of a cluster share a vector.
        most: clusters of a projection.
        standardize: as for `cluster`.
        seed: of the clustering.
    """
    parts: dict[str, list[Rows]] = defaultdict(list)
    for chosen in found:
        labels = np.arange(len(chosen.rows))
        if share:
            labels = cluster(chosen.profiles, most, standardize=standardize, seed=seed)
        before = sum(part.count for part in parts[chosen.parameter])
        parts[chosen.parameter].append(Rows(chosen.rows, labels + before))
    return Updates({name: _joined(own) for name, own in parts.items()})


def _joined(parts: list[Rows]) -> Rows:
    rows, vectors = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "vectors"))
    order = np.argsort(rows)
    return Rows(rows[order], vectors[order])
