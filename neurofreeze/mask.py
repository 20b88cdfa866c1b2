"""NeuronMask: one bit per neuron of a model, with set algebra, controls, and checks that it fits a model.

What is frozen outside neurons is named by kind in its config.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neurofreeze._version import __version__
from neurofreeze.errors import MaskError
from neurofreeze.geometry import stack_shape
from neurofreeze.neurons import ELEMENTS, BoolArray, NeuronMap, Selection
from neurofreeze.rest import KINDS

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MaskConfig:
    """What a mask belongs to and where it came from; stored as `neuron_mask_config.json`."""

    model_type: str
    granularity: str
    layout: str  # NeuronMap.digest
    neurons: dict[str, int]
    model: str | None = None
    revision: str | None = None
    fingerprint: str | None = None  # of the chosen elements in the model the mask was made on
    strategy: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, str] = field(default_factory=dict)
    rest: tuple[str, ...] = ()  # kinds of parameters in no neuron that are frozen too; neurofreeze.rest.KINDS
    format_version: int = FORMAT_VERSION
    library_version: str = __version__

    @classmethod
    def of(cls, neuron_map: NeuronMap, **fields: Any) -> MaskConfig:
        """The config of a mask over `neuron_map`."""
        return cls(
            model_type=neuron_map.model_type,
            granularity=neuron_map.granularity,
            layout=neuron_map.digest,
            neurons={name: site.neurons for name, site in neuron_map.sites.items()},
            **fields,
        )


class NeuronMask:
    """One bit per neuron: True where the neuron is chosen (to be frozen, say).

    Args:
        bits: site name -> bool [neurons], for every site of the model.
        config: what the mask belongs to.
        scores: site name -> float32 [neurons], the scores it was selected by, if any.

    Raises:
        MaskError: if bits or scores do not have the shapes that the config states, or its `rest` is malformed.
    """

    def __init__(
        self, bits: Mapping[str, BoolArray], config: MaskConfig, scores: Mapping[str, FloatArray] | None = None
    ) -> None:
        _check_rest(config.rest)
        _check_shapes("bits", bits, config, np.dtype(np.bool_))
        if scores is not None:
            _check_shapes("scores", scores, config, np.dtype(np.float32))
        self.bits = {name: _frozen_copy(bits[name]) for name in config.neurons}
        self.scores = None if scores is None else {name: _frozen_copy(scores[name]) for name in config.neurons}
        self.config = config

    @classmethod
    def none(cls, neuron_map: NeuronMap) -> NeuronMask:
        """The mask that chooses no neuron."""
        return cls({n: np.zeros(s.neurons, bool) for n, s in neuron_map.sites.items()}, MaskConfig.of(neuron_map))

    @classmethod
    def random(cls, neuron_map: NeuronMap, fraction: float, seed: int) -> NeuronMask:
        """A uniformly random choice of `round(fraction * total)` neurons; the same for the same seed everywhere.

        Raises:
            MaskError: if fraction is not in (0, 1].
        """
        count = round(check_fraction(fraction) * neuron_map.total)
        chosen = np.zeros(neuron_map.total, dtype=bool)
        chosen[_draw(np.random.default_rng(seed), neuron_map.total, count)] = True
        ends = np.cumsum([site.neurons for site in neuron_map.sites.values()])[:-1]
        bits = dict(zip(neuron_map.sites, np.split(chosen, ends), strict=True))
        return cls(bits, MaskConfig.of(neuron_map, strategy={"name": "random", "fraction": fraction, "seed": seed}))

    @classmethod
    def random_like(cls, mask: NeuronMask, seed: int) -> NeuronMask:
        """A random mask with as many neurons at every site as `mask`: the control each comparison needs."""
        # Salted, or a random mask's own seed would draw the same neurons again.
        rng = np.random.default_rng([seed, 1])
        bits = {}
        for name, chosen in mask.bits.items():
            bits[name] = np.zeros(len(chosen), dtype=bool)
            bits[name][_draw(rng, len(chosen), int(chosen.sum()))] = True
        config = replace(mask.config, fingerprint=None, strategy={"name": "random_like", "seed": seed}, calibration={})
        return cls(bits, config)

    @classmethod
    def random_draws(cls, mask: NeuronMask, seed: int, draws: int) -> list[NeuronMask]:
        """As many masks of `random_like`, none of which is drawn by another seed."""
        return [cls.random_like(mask, seed * draws + draw) for draw in range(draws)]

    @property
    def count(self) -> int:
        """Number of chosen neurons."""
        return sum(int(bits.sum()) for bits in self.bits.values())

    @property
    def total(self) -> int:
        """Number of neurons of the model."""
        return sum(self.config.neurons.values())

    @property
    def fraction(self) -> float:
        """Share of the model's neurons that is chosen."""
        return self.count / self.total

    @property
    def digest(self) -> str:
        """SHA-256 over the layout and all that is chosen; two masks with the same digest choose the same."""
        h = hashlib.sha256(" ".join((self.config.layout, *self.config.rest)).encode())
        for name, bits in self.bits.items():
            h.update(name.encode() + np.packbits(bits).tobytes())
        return h.hexdigest()

    def __or__(self, other: NeuronMask) -> NeuronMask:
        return self._combine(other, np.logical_or, "|")

    def __and__(self, other: NeuronMask) -> NeuronMask:
        return self._combine(other, np.logical_and, "&")

    def __sub__(self, other: NeuronMask) -> NeuronMask:
        return self._combine(other, np.greater, "-")

    def __invert__(self) -> NeuronMask:
        bits = {name: ~bits for name, bits in self.bits.items()}
        return NeuronMask(bits, replace(self.config, fingerprint=None, strategy=_derived("~", self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NeuronMask) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        rest = "".join(f", {kind}" for kind in self.config.rest)
        return (
            f"NeuronMask({self.config.model_type}, {self.count:,} of {self.total:,} neurons, {self.fraction:.2%}{rest})"
        )

    def _combine(self, other: NeuronMask, op: Callable[..., Any], symbol: str) -> NeuronMask:
        if not isinstance(other, NeuronMask):
            return NotImplemented
        _compare("another mask", self.config, other.config)
        bits = {name: op(self.bits[name], other.bits[name]) for name in self.bits}
        rest = tuple(kind for kind in KINDS if op(kind in self.config.rest, kind in other.config.rest))
        return NeuronMask(
            bits, replace(self.config, fingerprint=None, rest=rest, strategy=_derived(symbol, self, other))
        )

    def check(self, neuron_map: NeuronMap) -> None:
        """Raise MaskError, naming the field that differs, unless the mask was made for this model's layout."""
        _compare("the model", self.config, MaskConfig.of(neuron_map))

    def check_weights(self, fingerprint: str) -> None:
        """Raise MaskError unless a model's fingerprint at the chosen neurons is that of the mask, if it has one."""
        if self.config.fingerprint not in (None, fingerprint):
            raise MaskError(
                f"field 'fingerprint': the mask was made on weights with {self.config.fingerprint}, the model has "
                f"{fingerprint} at the chosen neurons; load the weights the mask was made on, or "
                "mask.with_config(fingerprint=None) if other weights are meant"
            )

    def select(self, neuron_map: NeuronMap) -> dict[str, Selection]:
        """Parameter name -> the rows or columns that the chosen neurons own, or that are of the kinds in `config.rest`.

        Raises:
            MaskError: if the mask was made for another model.
            ConfigError: if two kinds share a parameter and only one of them is chosen.
        """
        self.check(neuron_map)
        return _union(neuron_map.select(self.bits), neuron_map.held(self.config.rest))

    def dense(self, model: Any) -> dict[str, torch.Tensor]:
        """Parameter name -> bool tensor of the parameter's shape, True where chosen. For checks, not for training."""
        import torch

        neuron_map = NeuronMap.of(model, self.config.granularity)  # type: ignore[arg-type]
        dense = {}
        for name, (axis, index) in self.select(neuron_map).items():
            mask = np.zeros(stack_shape(neuron_map.shapes[name]), dtype=bool)
            if axis == ELEMENTS:
                mask.reshape(-1)[index] = True
            else:
                matrix, line = np.divmod(index, mask.shape[axis + 1])
                mask.swapaxes(1, axis + 1)[matrix, line] = True
            dense[name] = torch.from_numpy(mask).view(neuron_map.shapes[name])
        return dense

    def with_config(self, **fields: Any) -> NeuronMask:
        """The same neurons with some fields of the config replaced."""
        return NeuronMask(self.bits, replace(self.config, **fields), self.scores)

    def with_rest(self, *kinds: str) -> NeuronMask:
        """The same neurons, and of what belongs to none of them these kinds and no others.

        Set algebra applies to kinds as it does to neurons, but `~` keeps them. See also `freeze_rest`.

        Args:
            kinds: of "embeddings", "norms", "lm_head" and "other"; none to let all of it train.

        Raises:
            MaskError: if there is no such kind.
        """
        _check_rest([kind for kind in KINDS if kind in kinds] + [kind for kind in kinds if kind not in KINDS])
        rest = tuple(kind for kind in KINDS if kind in kinds)
        return self if rest == self.config.rest else self.with_config(rest=rest, fingerprint=None)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write neuron_mask.safetensors, neuron_mask_config.json and a README.md card into `folder`."""
        from neurofreeze import mask_file

        return mask_file.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, source: str | Path, *, model: Any = None, revision: str | None = None) -> NeuronMask:
        """Load a mask from a folder or the Hugging Face Hub, checking everything before any model is loaded.

        Args:
            source: a folder, or a hub repository id.
            model: a model, config or NeuronMap that the mask must fit.
            revision: hub revision.

        Raises:
            MaskError: if a file is missing or malformed or the mask is for another model, naming the field.
        """
        from neurofreeze import mask_file

        mask = mask_file.load(source, revision)
        if model is not None:
            found = model if isinstance(model, NeuronMap) else NeuronMap.of(model, mask.config.granularity)  # type: ignore[arg-type]
            mask.check(found)
        return mask

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> NeuronMask:
        """The mask that a checkpoint carries: `state` holds what `Freezer.state_dict()` returned.

        Raises:
            FreezeError: if it carries none, or a damaged one.
        """
        from neurofreeze.record import FreezeRecord

        return FreezeRecord.of(state).mask

    def push_to_hub(self, repo_id: str, *, private: bool = True, revision: str | None = None) -> str:
        """Upload what `save_pretrained` writes to the hub repository `repo_id`; returns the commit's URL."""
        from neurofreeze import mask_file

        return mask_file.push(self, repo_id, private, revision)


def check_fraction(fraction: float) -> float:
    """`fraction` if it is in (0, 1].

    Raises:
        MaskError: otherwise, NaN included.
    """
    if not 0 < fraction <= 1:
        raise MaskError(f"fraction is {fraction}; expected a number in (0, 1]")
    return fraction


def _check_rest(rest: Sequence[str]) -> None:
    if list(rest) != [kind for kind in KINDS if kind in rest]:
        raise MaskError(f"field 'rest': found {list(rest)}, expected kinds of {', '.join(KINDS)}, each once, in order")


def _union(chosen: dict[str, Selection], more: dict[str, Selection]) -> dict[str, Selection]:
    # Of one parameter both are along one axis: neurons take its rows or its columns, the rest what they leave.
    both = {
        name: Selection(chosen[name].axis, np.union1d(chosen[name].index, more[name].index))
        for name in chosen.keys() & more.keys()
    }
    return {**chosen, **more, **both}


def _draw(rng: np.random.Generator, total: int, count: int) -> npt.NDArray[np.int64]:
    # Sorting uniform doubles depends only on the bit generator's stream, which NumPy keeps across versions;
    # Generator.choice does not promise that.
    return np.argsort(rng.random(total), kind="stable")[:count]


def _derived(symbol: str, *masks: NeuronMask) -> dict[str, Any]:
    return {"name": symbol, "of": [mask.config.strategy or {"name": "manual"} for mask in masks]}


def _frozen_copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


def _check_shapes(what: str, arrays: Mapping[str, Any], config: MaskConfig, dtype: np.dtype[Any]) -> None:
    if set(arrays) != set(config.neurons):
        odd = sorted(set(arrays) ^ set(config.neurons))
        raise MaskError(f"field '{what}': sites {odd[:3]} are in only one of {what} and config.neurons")
    for name, neurons in config.neurons.items():
        if arrays[name].dtype != dtype or arrays[name].shape != (neurons,):
            raise MaskError(
                f"field '{what}.{name}': found {arrays[name].dtype} of shape {arrays[name].shape}, "
                f"expected {dtype} of shape ({neurons},)"
            )


def _compare(what: str, mask: MaskConfig, other: MaskConfig) -> None:
    for name in ("model_type", "granularity", "neurons", "layout"):
        found, expected = getattr(mask, name), getattr(other, name)
        if found == expected:
            continue
        if isinstance(found, dict):
            name, found, expected = next(
                (f"neurons.{site}", found.get(site), expected.get(site))
                for site in [*found, *expected]
                if found.get(site) != expected.get(site)
            )
        raise MaskError(
            f"field '{name}': the mask has {found}, {what} has {expected}; this mask was made for another model"
        )
