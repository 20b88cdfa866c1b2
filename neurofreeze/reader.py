"""Reading a NeuronMap from a config's tensor-parallel plan, every shape checked on a model without storage."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, cast

import numpy as np

from neurofreeze import layouts
from neurofreeze.architectures import (
    COLUMN_PARALLEL,
    FUSED_GATE_UP,
    GATED_QUERY,
    INDIVISIBLE,
    NOT_SPLIT,
    PACKED,
    PLANS,
    ROW_PARALLEL,
    fused_layout,
    kv_heads,
)
from neurofreeze.errors import ArchitectureError
from neurofreeze.neurons import ELEMENTS, Granularity, IndexArray, Member, NeuronMap, Site
from neurofreeze.rest import kinds_of

Styles = dict[str, str]  # name of a module or parameter -> how the plan splits it


class Reader:
    """One architecture, from its config to its neurons."""

    def __init__(self, config: Any, granularity: Granularity) -> None:
        self.config = config.get_text_config()
        self.granularity = granularity
        self.model = on_meta(config)
        self.modules = dict(self.model.named_modules())
        self.shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}

    def read(self) -> NeuronMap:
        """The map.

        Raises:
            ArchitectureError: if a block that the plan splits cannot be mapped, with what was found.
        """
        blocks = self._blocks()
        sites = [self._site(block, styles) for block, styles in blocks.items()]
        if not sites:
            raise ArchitectureError(f"{self._who()} has no block that its tensor-parallel plan describes")
        sites.sort(key=lambda site: (site.layer, site.name))
        kinds = kinds_of(self.model)
        uncovered = self._uncovered(blocks)
        model_type = self.config.model_type
        return NeuronMap(model_type, sites, self.shapes, self.granularity, uncovered, kinds, tied_names(self.model))

    def _who(self) -> str:
        return f"architecture {self.config.model_type!r} ({type(self.model).__name__})"

    def _blocks(self) -> dict[str, Styles]:
        """Parent module -> its modules and parameters that the plan splits, without indivisible blocks."""
        plan = PLANS.get(self.config.model_type) or getattr(self.config, "base_model_tp_plan", None)
        if not plan:
            linear = sorted({re.sub(r"\d+", "*", n) for n, m in self.modules.items() if hasattr(m, "weight")})
            raise ArchitectureError(
                f"{self._who()} has no tensor-parallel plan and is not in neurofreeze.architectures.PLANS; "
                f"its modules with weights are {', '.join(linear)}"
            )
        decoder = self.model.get_decoder()
        prefix = next(name for name, module in self.modules.items() if module is decoder)
        blocks: dict[str, Styles] = defaultdict(dict)
        for pattern, style in plan.items():
            if style in NOT_SPLIT:
                continue
            if style not in COLUMN_PARALLEL | ROW_PARALLEL:
                raise ArchitectureError(
                    f"{self._who()}: {pattern} is split as {style!r}, which this version cannot map; "
                    f"it maps {sorted(COLUMN_PARALLEL | ROW_PARALLEL)}"
                )
            regex = re.compile(re.escape(f"{prefix}.{pattern}").replace(r"\*", r"\d+"))
            for name in filter(regex.fullmatch, (*self.modules, *self.shapes)):
                if self._indivisible(_parent(name)) is None:
                    blocks[_parent(name)][name] = style
        return blocks

    def _site(self, block: str, styles: Styles) -> Site:
        layer = int(cast(re.Match[str], re.search(r"\.(\d+)(\.|$)", block)).group(1))
        if any(len(self.shapes.get(name, ())) == 3 for name in styles):
            reads, writes = self._experts(block, styles)
            return Site(f"layers.{layer}.mlp.experts", "mlp", layer, reads, writes)
        reading = [name for name, style in styles.items() if style in COLUMN_PARALLEL]
        writing = [name for name, style in styles.items() if style in ROW_PARALLEL]
        if len(writing) != 1 or not reading:
            raise ArchitectureError(
                f"{self._who()}: block {block} has column-parallel modules {reading} and row-parallel modules "
                f"{writing}; expected at least one of the former and exactly one of the latter"
            )
        if "attn" in _leaf(block) or "attention" in _leaf(block):
            reads, index = self._attention(block, reading, channels=self._features(writing[0])[0])
            return Site(f"layers.{layer}.attention", "attention", layer, reads, self._input(writing[0], index))
        reads, index = self._mlp(reading, channels=self._features(writing[0])[0])
        name = f"layers.{layer}.mlp.shared" if "shared" in _leaf(block) else f"layers.{layer}.mlp"
        return Site(name, "mlp", layer, reads, self._input(writing[0], index))

    def _mlp(self, reading: list[str], channels: int) -> tuple[tuple[Member, ...], IndexArray]:
        index = np.arange(channels)[:, None]
        if len(reading) == 1 and self.config.model_type in FUSED_GATE_UP:
            gate_up = layouts.experts(1, channels, parts=2)
            return tuple(self._output(reading[0], gate_up, 2 * channels)), index
        return tuple(member for name in reading for member in self._output(name, index, channels)), index

    def _experts(self, block: str, styles: Styles) -> tuple[tuple[Member, ...], Member]:
        by_leaf = {_leaf(name): name for name in styles}
        if set(by_leaf) not in ({"gate_up_proj", "down_proj"}, {"up_proj", "down_proj"}):
            raise ArchitectureError(
                f"{self._who()}: experts {block} are made of {sorted(by_leaf)}; expected down_proj and one of "
                "gate_up_proj and up_proj"
            )
        writing = by_leaf.pop("down_proj")
        (reading,) = by_leaf.values()
        # Kept [in, out] instead of [out, in].
        transposed = styles[writing] in COLUMN_PARALLEL
        self._require_storage(block, transposed, styles[reading])
        parts = 2 if _leaf(reading) == "gate_up_proj" else 1
        number, channels = self.shapes[writing][0], self.shapes[writing][1 if transposed else 2]
        found = self.shapes[reading][2 if transposed else 1]
        if found != parts * channels:
            raise ArchitectureError(
                f"{self._who()}: {reading} has {found} output features, expected {parts * channels}"
            )
        index = layouts.experts(number, channels, parts, styles[reading] in PACKED)
        reads = [Member(reading, 1 if transposed else 0, index)]
        if f"{reading}_bias" in self.shapes:
            reads.append(Member(f"{reading}_bias", ELEMENTS, index))
        return tuple(reads), Member(writing, 0 if transposed else 1, layouts.experts(number, channels))

    def _require_storage(self, block: str, transposed: bool, style: str) -> None:
        # transformers says it twice: in the plan, and on the module for its own kernels.
        module = self.modules[block]
        planned = {"is_transposed": transposed, "is_concatenated": style in PACKED}
        if not getattr(module, "has_gate", True):
            del planned["is_concatenated"]
        found = {name: getattr(module, name, value) for name, value in planned.items()}
        if found != planned or transposed != (style in ROW_PARALLEL):
            raise ArchitectureError(
                f"{self._who()}: {block} is stored with {found}, but its tensor-parallel plan splits it as {style!r}; "
                "expected both to say the same"
            )

    def _attention(self, block: str, reading: list[str], channels: int) -> tuple[tuple[Member, ...], IndexArray]:
        heads, shared = self.config.num_attention_heads, kv_heads(self.config)
        if channels % heads or heads % shared:
            raise ArchitectureError(
                f"{self._who()}: {block} has {channels} channels, {heads} query heads and {shared} KV heads, "
                "which do not divide"
            )
        dim = channels // heads
        reads: list[Member] = []
        by_leaf = {_leaf(name): name for name in reading if name not in self.shapes}
        layout = fused_layout(self.config)
        if set(by_leaf) == {"q_proj", "k_proj", "v_proj"}:
            query, key_value = layouts.grouped(heads, shared, dim)
            sizes = {"q_proj": channels, "k_proj": shared * dim, "v_proj": shared * dim}
            wanted = {"q_proj": query, "k_proj": key_value, "v_proj": key_value}
            per_channel = {"v_proj": key_value}
            if self.config.model_type in GATED_QUERY:
                sizes["q_proj"] = 2 * channels
                wanted["q_proj"], per_channel["q_proj"] = layouts.gated(heads, dim)
            if self.granularity == "channel":
                query, wanted = query.reshape(-1, 1), {leaf: rows.reshape(-1, 1) for leaf, rows in per_channel.items()}
            for leaf, index in wanted.items():
                reads += self._output(by_leaf[leaf], index, sizes[leaf])
        elif len(by_leaf) == 1 and layout is not None:
            (fused,) = by_leaf.values()
            query = np.arange(channels).reshape(heads, dim)
            parts = layouts.fused_qkv(layout, heads, shared, dim)
            index = np.concatenate(parts, axis=1)
            if self.granularity == "channel":
                query, index = query.reshape(-1, 1), parts[2].reshape(-1, 1)
            reads += self._output(fused, index, channels + 2 * shared * dim)
        else:
            raise ArchitectureError(
                f"{self._who()}: {block} reads through {sorted(by_leaf)}; expected q_proj, k_proj and v_proj, or one "
                "fused projection whose layout neurofreeze.architectures knows"
            )
        for name in filter(self.shapes.__contains__, reading):
            if self.shapes[name] != (heads,):
                raise ArchitectureError(f"{self._who()}: {name} has shape {self.shapes[name]}, expected ({heads},)")
            if self.granularity == "head":
                reads.append(Member(name, 0, np.arange(heads)[:, None]))
        return tuple(reads), query

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

    def _indivisible(self, block: str) -> str | None:
        found = (why for leaf, why in INDIVISIBLE.items() if f"{block}.{leaf}" in self.modules)
        return next(found, None)

    def _uncovered(self, blocks: dict[str, Styles]) -> dict[str, str]:
        """The largest parts of the layers that hold matrices and nothing mapped, and why."""
        mapped = {name for styles in blocks.values() for name in styles}
        above = {parent for name in mapped for parent in _ancestors(name)}
        # Beside experts, what chooses among them (a row each) and what weighs the shared ones (one row) is a router.
        routed = {_parent(_parent(n)): self.shapes[n][0] for n in mapped if len(self.shapes.get(n, ())) == 3}
        found: dict[str, str] = {}
        for name, shape in self.shapes.items():
            module = _parent(name)
            if len(shape) < 2 or name.endswith("bias") or not re.search(r"\.\d+\.", name):
                continue
            if mapped & {name, module} or "Norm" in type(self.modules[module]).__name__:
                continue
            if _parent(module) in routed and shape[0] in (1, routed[_parent(module)]):
                continue
            part = name
            while part not in above and _parent(part) not in above:
                part = _parent(part)
            found[part.removesuffix(".weight")] = (
                self._indivisible(part) or "its tensor-parallel plan does not split it"
            )
        return found


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _ancestors(name: str) -> Iterator[str]:
    while name:
        name = _parent(name)
        yield name


def tied_names(model: Any) -> dict[str, str]:
    """Each further name of a parameter that a model has under several -> its first one."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if name != first[id(parameter)]}


def on_meta(config: Any) -> Any:
    """The config's causal language model, its parameters without storage.

    Raises:
        ArchitectureError: if transformers has none.
    """
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
