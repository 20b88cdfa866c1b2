"""NeuronMap: which rows and columns of which parameters make up each neuron of a model.

A neuron is a unit that tensor parallelism could put on a device of its own: it *reads* the residual stream through
rows of the column-parallel matrices of its block and *writes* back through columns of the row-parallel one.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from neurofreeze.architectures import COLUMN_PARALLEL, FUSED_QKV, PLANS, REPLICATED, ROW_PARALLEL
from neurofreeze.errors import ArchitectureError, ConfigError

Granularity = Literal["head", "channel"]
IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Selection(NamedTuple):
    """Rows (axis 0) or columns (axis 1) of one parameter: `index` is sorted, unique, int64.

    A stack of matrices [E, rows, cols], as experts are kept, is counted through: row r of matrix e is e * rows + r,
    column c of it e * cols + c. So each matrix has rows or columns of its own chosen.
    """

    axis: int
    index: IndexArray  # type: ignore[assignment]  # shadows tuple.index, which nobody needs here


@dataclass(frozen=True, eq=False)
class Member:
    """The part of one parameter that belongs to a site's neurons.

    `index[j]` holds the rows (axis 0) or columns (axis 1) of neuron j, int64 [neurons, width]. Rows named by several
    neurons are shared by them: under grouped-query attention a KV head serves several query heads.
    """

    parameter: str
    axis: int
    index: IndexArray

    def selection(self, bits: BoolArray) -> Selection:
        """Rows or columns that belong to *any* of the chosen neurons; bits is bool [neurons]."""
        return Selection(self.axis, np.unique(self.index[bits]))


@dataclass(frozen=True, eq=False)
class Site:
    """The neurons of one block: an MLP or an attention module of one layer."""

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
        """Name of the module whose *input* carries the activations: channel `writes.index[j]` is neuron j's."""
        return self.writes.parameter.removesuffix(".weight")


class NeuronMap:
    """All neurons of a model, site by site, and the parameters that belong to none (`rest`)."""

    def __init__(
        self,
        model_type: str,
        sites: Sequence[Site],
        shapes: Mapping[str, tuple[int, ...]],
        granularity: Granularity = "head",
    ) -> None:
        self.model_type = model_type
        self.granularity = granularity
        self.sites = {site.name: site for site in sites}
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
        return _Reader(_config_of(model_or_config), granularity).read()

    @property
    def total(self) -> int:
        """Number of neurons in the model."""
        return sum(site.neurons for site in self.sites.values())

    @cached_property
    def rest(self) -> tuple[str, ...]:
        """Names of the parameters that belong to no neuron: embeddings, norms, output biases, lm_head."""
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
        """Rows or columns of each parameter that the chosen neurons own; parameters with none are left out.

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

    def elements(self, bits: Mapping[str, BoolArray]) -> int:
        """Number of weight elements that the chosen neurons own."""
        return sum(
            len(selection.index) * _size(self.shapes[name]) // _lines(self.shapes[name], selection.axis)
            for name, selection in self.select(bits).items()
        )


def canonical_name(name: str) -> str:
    """A parameter's name without what DDP, FSDP, torch.compile and activation checkpointing put into it."""
    for wrapper in ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def _lines(shape: tuple[int, ...], axis: int) -> int:
    """Number of rows (axis 0) or columns (axis 1), over all matrices of a stack."""
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
        if member.axis >= len(shape) or member.index.min() < 0 or member.index.max() >= _lines(shape, member.axis):
            raise ArchitectureError(
                f"{member.parameter} of shape {shape} is too small for axis {member.axis} of the map"
            )


class _Reader:
    """Turns a config's tensor-parallel plan into a NeuronMap, checking every shape on a model without storage."""

    def __init__(self, config: Any, granularity: Granularity) -> None:
        self.config = config.get_text_config()
        self.granularity = granularity
        self.model = _on_meta(config)
        self.modules = dict(self.model.named_modules())
        self.shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}

    def read(self) -> NeuronMap:
        sites = [self._site(block, *parts) for block, parts in self._blocks().items()]
        if not sites:
            raise ArchitectureError(f"{self._who()} has no block that its tensor-parallel plan describes")
        sites.sort(key=lambda site: (site.layer, site.kind))
        return NeuronMap(self.config.model_type, sites, self.shapes, self.granularity)

    def _who(self) -> str:
        return f"architecture {self.config.model_type!r} ({type(self.model).__name__})"

    def _blocks(self) -> dict[str, tuple[list[str], list[str]]]:
        """Parent module -> names of its column-parallel and of its row-parallel modules."""
        plan = PLANS.get(self.config.model_type) or getattr(self.config, "base_model_tp_plan", None)
        if not plan:
            linear = sorted({re.sub(r"\d+", "*", n) for n, m in self.modules.items() if hasattr(m, "weight")})
            raise ArchitectureError(
                f"{self._who()} has no tensor-parallel plan and is not in neurofreeze.architectures.PLANS; "
                f"its modules with weights are {', '.join(linear)}"
            )
        prefix = f"{self.model.base_model_prefix}."
        blocks: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for pattern, style in plan.items():
            if style in REPLICATED:
                continue
            if style not in COLUMN_PARALLEL | ROW_PARALLEL:
                raise ArchitectureError(
                    f"{self._who()}: {pattern} is split as {style!r}, which this version cannot map; "
                    f"it maps {sorted(COLUMN_PARALLEL | ROW_PARALLEL)}"
                )
            regex = re.compile(re.escape(prefix + pattern).replace(r"\*", r"\d+"))
            for name in filter(regex.fullmatch, self.modules):
                blocks[name.rpartition(".")[0]][style in ROW_PARALLEL].append(name)
        return blocks

    def _site(self, block: str, reading: list[str], writing: list[str]) -> Site:
        if len(writing) != 1 or not reading:
            raise ArchitectureError(
                f"{self._who()}: block {block} has column-parallel modules {reading} and row-parallel modules "
                f"{writing}; expected at least one of the former and exactly one of the latter"
            )
        layer = int(cast(re.Match[str], re.search(r"\.(\d+)(\.|$)", block)).group(1))
        channels = self._features(writing[0])[0]
        if "attn" in block.rpartition(".")[2] or "attention" in block.rpartition(".")[2]:
            reads, index = self._attention(block, reading, channels)
            return Site(f"layers.{layer}.attention", "attention", layer, tuple(reads), self._input(writing[0], index))
        index = np.arange(channels)[:, None]
        reads = [member for name in reading for member in self._output(name, index, channels)]
        return Site(f"layers.{layer}.mlp", "mlp", layer, tuple(reads), self._input(writing[0], index))

    def _attention(self, block: str, reading: list[str], channels: int) -> tuple[list[Member], IndexArray]:
        heads = self.config.num_attention_heads
        kv_heads = getattr(self.config, "num_key_value_heads", None) or heads
        if channels % heads or heads % kv_heads:
            raise ArchitectureError(
                f"{self._who()}: {block} has {channels} channels, {heads} query heads and {kv_heads} KV heads, "
                "which do not divide"
            )
        dim, group = channels // heads, heads // kv_heads
        query = np.arange(channels).reshape(heads, dim)
        key_value = np.arange(kv_heads * dim).reshape(kv_heads, dim).repeat(group, axis=0)
        if self.granularity == "channel":
            query, key_value = query.reshape(-1, 1), key_value.reshape(-1, 1)

        by_leaf = {name.rpartition(".")[2]: name for name in reading}
        if set(by_leaf) == {"q_proj", "k_proj", "v_proj"}:
            rows = {
                "q_proj": (query, channels),
                "k_proj": (key_value, kv_heads * dim),
                "v_proj": (key_value, kv_heads * dim),
            }
            wanted = rows if self.granularity == "head" else {"v_proj": rows["v_proj"]}
            reads = [member for leaf, args in wanted.items() for member in self._output(by_leaf[leaf], *args)]
            return reads, query
        layout = FUSED_QKV.get(self.config.model_type)
        if len(reading) != 1 or layout is None or group != 1:
            raise ArchitectureError(
                f"{self._who()}: {block} reads through {sorted(by_leaf)}; expected q_proj, k_proj and v_proj, or one "
                f"fused projection listed in neurofreeze.architectures.FUSED_QKV"
            )
        # [q, k or v; neuron; width] -> row of the fused matrix
        parts = np.arange(3 * channels)
        fused = parts.reshape(3, heads, dim) if layout == "blocks" else parts.reshape(heads, 3, dim).swapaxes(0, 1)
        if self.granularity == "head":
            index = fused.transpose(1, 0, 2).reshape(heads, 3 * dim)
        else:
            index = fused[2].reshape(-1, 1)
        return self._output(reading[0], index, 3 * channels), query

    def _features(self, name: str) -> tuple[int, int]:
        """(in_features, out_features) of a linear module; transformers' Conv1D stores its weight transposed."""
        shape = self.shapes[f"{name}.weight"]
        return (shape[0], shape[1]) if self._transposed(name) else (shape[1], shape[0])

    def _transposed(self, name: str) -> bool:
        return type(self.modules[name]).__name__ == "Conv1D"

    def _output(self, name: str, index: IndexArray, expected: int) -> list[Member]:
        found = self._features(name)[1]
        if found != expected:
            raise ArchitectureError(f"{self._who()}: {name} has {found} output features, expected {expected}")
        members = [Member(f"{name}.weight", 1 if self._transposed(name) else 0, index)]
        if f"{name}.bias" in self.shapes:
            members.append(Member(f"{name}.bias", 0, index))
        return members

    def _input(self, name: str, index: IndexArray) -> Member:
        return Member(f"{name}.weight", 0 if self._transposed(name) else 1, index)


def _on_meta(config: Any) -> Any:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = deepcopy(config)
    # A quantized checkpoint has the neurons of its dense model, which is what the map describes.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise ArchitectureError(
            f"architecture {config.model_type!r} has no causal language model in transformers ({type(config).__name__})"
        )
    models = found if isinstance(found, (list, tuple)) else (found,)
    wanted = next((m for m in models if m.__name__ in (config.architectures or ())), models[0])
    # The class itself: AutoModelForCausalLM.from_config would shard it where ZeRO-3 is switched on.
    with torch.device("meta"):
        return wanted(config)
