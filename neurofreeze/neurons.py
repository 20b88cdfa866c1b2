"""NeuronMap: which rows and columns of which parameters make up each neuron of a model.

A neuron is a unit that tensor parallelism could put on a device of its own: it *reads* the residual stream through
rows of the column-parallel matrices of its block and *writes* back through columns of the row-parallel one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from neurofreeze.errors import ArchitectureError, ConfigError

Granularity = Literal["head", "channel"]
IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

ELEMENTS = 2  # the axis of a selection of single elements


class Selection(NamedTuple):
    """Rows (axis 0), columns (axis 1) or elements (axis 2) of one parameter: `index` is sorted, unique, int64.

    A stack of matrices [E, rows, cols], as experts are kept, is counted through: row r of matrix e is e * rows + r,
    column c of it e * cols + c. So each matrix has rows or columns of its own chosen. The experts' biases [E, n] are
    chosen by element, counted through as well: element c of row e is e * n + c.
    """

    axis: int
    index: IndexArray  # type: ignore[assignment]  # shadows tuple.index, which nobody needs here


@dataclass(frozen=True, eq=False)
class Member:
    """The part of one parameter that belongs to a site's neurons.

    `index[j]` holds the rows, columns or elements of neuron j, int64 [neurons, width], counted as in `Selection`.
    Rows named by several neurons are shared by them: under grouped-query attention a KV head serves several query
    heads.
    """

    parameter: str
    axis: int
    index: IndexArray

    def selection(self, bits: BoolArray) -> Selection:
        """What belongs to *any* of the chosen neurons; bits is bool [neurons]."""
        return Selection(self.axis, np.unique(self.index[bits]))


@dataclass(frozen=True, eq=False)
class Site:
    """The neurons of one block: an attention module, an MLP or all experts of one layer.

    Neuron j of expert e of `layers.3.mlp.experts` is e * (neurons of an expert) + j.
    """

    name: str
    kind: Literal["attention", "mlp"]
    layer: int
    reads: tuple[Member, ...]
    writes: Member

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return int(self.writes.index.shape[0])

    @property
    def members(self) -> tuple[Member, ...]:
        """Every parameter part that belongs to the site's neurons."""
        return (*self.reads, self.writes)

    @property
    def module(self) -> str:
        """Name of the module whose *input* carries the activations: channel `writes.index[j]` is neuron j's.

        Of experts, that of the stack of matrices, whose input is no module's; `neurofreeze.activations` watches both.
        """
        return self.writes.parameter.removesuffix(".weight")


class NeuronMap:
    """All neurons of a model, site by site, and the parameters that belong to none (`rest`).

    `uncovered` names the blocks of `rest` that compute as neurons might, and says why they are not mapped; `kinds` says
    of every parameter what it is when it belongs to no neuron, see `neurofreeze.rest`; `tied` maps each further name of
    a parameter that the model has under several to its first one.
    """

    def __init__(
        self,
        model_type: str,
        sites: Sequence[Site],
        shapes: Mapping[str, tuple[int, ...]],
        granularity: Granularity = "head",
        uncovered: Mapping[str, str] | None = None,
        kinds: Mapping[str, tuple[str, ...]] | None = None,
        tied: Mapping[str, str] | None = None,
    ) -> None:
        self.model_type = model_type
        self.granularity = granularity
        self.uncovered = dict(uncovered or {})
        self.kinds = dict(kinds or {})
        self.tied = dict(tied or {})
        self.sites = {site.name: site for site in sites}
        if len(self.sites) < len(sites):
            names = [site.name for site in sites]
            raise ArchitectureError(f"two blocks are both called {max(names, key=names.count)}")
        self.shapes = dict(shapes)
        _check_members(self)

    @classmethod
    def of(cls, model_or_config: Any, granularity: Granularity = "head") -> NeuronMap:
        """Read the map of a transformers causal language model from its config.

        Args:
            model_or_config: a `PreTrainedModel` (wrapped or not) or a `PretrainedConfig`. Weights are never touched.
            granularity: what an attention neuron is. "head": a query head with its rows of q, k, v and its columns of
                the output projection. "channel": one input channel of the output projection with its row of v; q and
                k, which all channels of a head share, then belong to no neuron.

        Raises:
            ArchitectureError: if the model's blocks cannot be mapped, with what was found.
        """
        if granularity not in ("head", "channel"):
            raise ConfigError(f"granularity is {granularity!r}; expected 'head' or 'channel'")
        from neurofreeze.reader import Reader

        return Reader(_config_of(model_or_config), granularity).read()

    @property
    def total(self) -> int:
        """Number of neurons in the model."""
        return sum(site.neurons for site in self.sites.values())

    @cached_property
    def rest(self) -> tuple[str, ...]:
        """Names of the parameters that belong to no neuron: embeddings, norms, output biases, routers, lm_head."""
        covered = {member.parameter for member in self.members()}
        return tuple(name for name in self.shapes if name not in covered)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the layout: two models with the same digest have the same neurons in the same places."""
        h = hashlib.sha256(f"{self.model_type} {self.granularity}".encode())
        for member in self.members():
            h.update(f"{member.parameter} {self.shapes[member.parameter]} {member.axis} {member.index.shape}".encode())
            h.update(member.index.astype("<i8").tobytes())
        return h.hexdigest()

    def members(self) -> Iterator[Member]:
        """Every member of every site, in order."""
        for site in self.sites.values():
            yield from site.members

    def select(self, bits: Mapping[str, BoolArray]) -> dict[str, Selection]:
        """Rows, columns or elements of each parameter that the chosen neurons own; those with none are left out.

        Args:
            bits: site name -> bool [neurons].
        """
        parts: dict[str, list[Selection]] = defaultdict(list)
        for name, site in self.sites.items():
            if bits[name].any():
                for member in site.members:
                    parts[member.parameter].append(member.selection(bits[name]))
        return {
            parameter: Selection(found[0].axis, np.unique(np.concatenate([s.index for s in found])))
            for parameter, found in parts.items()
        }

    def held(self, kinds: Collection[str]) -> dict[str, Selection]:
        """What belongs to no neuron and is of one of these kinds (`neurofreeze.rest.KINDS`), parameter by parameter.

        Whole parameters, and of "other" also the lines of a neuron's parameter that are no neuron's own: of a fused
        projection at granularity "channel", the rows of q and k.

        Raises:
            ConfigError: if a parameter is of two kinds, as tied embeddings are, and only one of them is given.
            ArchitectureError: if this map, made by hand, does not say what its parameters are.
        """
        if not kinds:
            return {}
        found = {}
        for name in self.rest:
            if name not in self.kinds:
                raise ArchitectureError(f"the map does not say what kind of parameter {name} is; give NeuronMap kinds=")
            given = [kind in kinds for kind in self.kinds[name]]
            if any(given) and not all(given):
                raise ConfigError(
                    f"{name} is {' and '.join(self.kinds[name])} at once (they are tied), but only "
                    f"{', '.join(kind for kind in self.kinds[name] if kind in kinds)} is to be frozen; freeze both or "
                    "train both"
                )
            if any(given):
                found[name] = Selection(0, np.arange(_lines(self.shapes[name], 0)))
        return {**found, **self._between} if "other" in kinds else found

    @cached_property
    def _between(self) -> dict[str, Selection]:
        """The lines of the neurons' parameters that are no neuron's own."""
        own = self.select({name: np.ones(site.neurons, bool) for name, site in self.sites.items()})
        lines = {name: np.arange(_lines(self.shapes[name], axis)) for name, (axis, _) in own.items()}
        between = {name: Selection(axis, np.setdiff1d(lines[name], index)) for name, (axis, index) in own.items()}
        return {name: selection for name, selection in between.items() if len(selection.index)}

    def elements(self, bits: Mapping[str, BoolArray]) -> int:
        """Number of weight elements that the chosen neurons own."""
        return self.size(self.select(bits))

    def size(self, selections: Mapping[str, Selection]) -> int:
        """Number of weight elements in selections of parameters."""
        return sum(
            len(selection.index) * _size(self.shapes[name]) // _lines(self.shapes[name], selection.axis)
            for name, selection in selections.items()
        )


def canonical_name(name: str) -> str:
    """A parameter's name without what DDP, FSDP, torch.compile, activation checkpointing and PEFT put into it."""
    for wrapper in ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.", "base_layer."):
        name = name.replace(wrapper, "")
    return name.removeprefix("module.").removeprefix("base_model.model.")


def _lines(shape: tuple[int, ...], axis: int) -> int:
    """Number of rows (axis 0), columns (axis 1) or elements (axis 2), over all matrices of a stack."""
    if axis == ELEMENTS:
        return _size(shape)
    if axis >= len(shape):
        return 0
    return shape[0] * shape[axis + 1] if len(shape) == 3 else shape[axis]


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _config_of(model_or_config: Any) -> Any:
    found = model_or_config
    while not hasattr(found, "model_type"):
        # A DeepSpeed engine has a config too, of its own.
        inner = getattr(found, "config", None)
        if not hasattr(inner, "model_type"):
            inner = getattr(found, "module", getattr(found, "_orig_mod", None))
        if inner is None:
            raise ArchitectureError(
                f"expected a transformers model or config, found {type(model_or_config).__name__}; "
                "for a model of your own, build NeuronMap(model_type, sites, shapes) by hand"
            )
        found = inner
    return found


def _check_members(neuron_map: NeuronMap) -> None:
    axes: dict[str, int] = {}
    for member in neuron_map.members():
        shape = neuron_map.shapes.get(member.parameter)
        if shape is None:
            raise ArchitectureError(f"{member.parameter} is in the map but not among the model's parameters")
        if axes.setdefault(member.parameter, member.axis) != member.axis:
            raise ArchitectureError(f"{member.parameter} would hold both row neurons and column neurons")
        if member.index.min() < 0 or member.index.max() >= _lines(shape, member.axis):
            raise ArchitectureError(
                f"{member.parameter} of shape {shape} is too small for axis {member.axis} of the map"
            )
