"""A neuron of the model, or a small set of them: how far above its usual level it is at the newest token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from neurofreeze.data.examples import Example
from neurofreeze.errors import GuardError
from neurofreeze.guard.triggers.base import Step
from neurofreeze.guard.triggers.fields import keys, require_settings, require_shapes
from neurofreeze.guard.triggers.newest import Place, newest, while_answering
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.scores import NeuronScores

Pool = Literal["mean", "max"]
_TINY = 1e-6


@dataclass(frozen=True, eq=False)
class NeuronTrigger:
    """The mean or maximum over neurons of sign * (activation - mean) / deviation.

    A neuron's activation is what its block's second matrix reads: of an MLP act(gate) * up; of a head, or a group of
    channels, the Euclidean norm.

    Attributes:
        channels: module -> int64 [neurons, width], which of the module's input channels each neuron has.
        mean, deviation: float32 [neurons], over tokens of benign prompts, module after module.
        sign: float32 [neurons], 1 where harmful prompts raise the activation, -1 where they lower it.
        pool: over neurons.
        prompts: keys of the prompts that these are from.
    """

    channels: dict[str, torch.Tensor]
    mean: torch.Tensor
    deviation: torch.Tensor
    sign: torch.Tensor
    pool: Pool = "mean"
    prompts: tuple[str, ...] = ()
    name: ClassVar[str] = "neurons"
    needs_expert: ClassVar[bool] = False
    threshold: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "max"):
            raise GuardError(f"pool is {self.pool!r}; expected 'mean' or 'max'")
        neurons = sum(len(index) for index in self.channels.values())
        fitted = {name: getattr(self, name) for name in ("mean", "deviation", "sign")}
        require_shapes(self.name, fitted, (neurons,))

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        harmful: Sequence[Example],
        benign: Sequence[Example],
        *,
        among: NeuronMask | NeuronScores | None = None,
        count: int = 8,
        pool: Pool = "mean",
        steps: int = 8,
        batch_size: int = 8,
    ) -> NeuronTrigger:
        """Choose neurons and learn their usual level from each prompt's last token and the beginning of its answer.

        Args:
            model: the model to guard.
            tokenizer: its own, with a chat template.
            harmful: prompts, not those that the gate is calibrated on.
            benign: the same.
            among: scores, of which the highest `count` are taken; or a mask, of whose neurons those `count` are that
                best tell the prompts apart, by abs(Cohen's d) over tokens; None for all MLP neurons.
            count: how many neurons.
            pool: over neurons.
            steps: how many tokens of each greedy answer, as the gate is to judge; the prompt's last is the first.
            batch_size: prompts at a time.

        Raises:
            GuardError: if there are fewer neurons to choose from.
            DataError: if there are no prompts.
        """
        granularity = among.config.granularity if isinstance(among, NeuronMask) else "head"
        scored = isinstance(among, NeuronScores)
        neuron_map = among.neuron_map if scored else NeuronMap.of(model, granularity)  # type: ignore[union-attr, arg-type]
        candidates = _candidates(among, neuron_map, count)
        available = sum(len(index) for index in candidates.values())
        if type(count) is not int or not 0 < count <= available:
            raise GuardError(f"count is {count!r}; expected a positive number, at most the {available} neurons given")
        places = {name: Place(neuron_map.sites[name].module, "input") for name in candidates}
        channels = {
            name: torch.from_numpy(neuron_map.sites[name].writes.index[index]) for name, index in candidates.items()
        }
        found = [
            while_answering(model, tokenizer, examples, [*places.values()], steps, batch_size)
            for examples in (harmful, benign)
        ]
        bad, good = (
            torch.cat([_levels(seen[places[name]].values, index) for name, index in channels.items()], 1).double()
            for seen in found
        )
        spread = (((bad.var(0, correction=0) + good.var(0, correction=0)) / 2).sqrt()).clamp(min=_TINY)
        effect = (bad.mean(0) - good.mean(0)) / spread
        chosen = torch.zeros(len(effect), dtype=torch.bool)
        chosen[effect.abs().argsort(descending=True, stable=True)[:count]] = True
        parts = chosen.split([len(index) for index in channels.values()])
        kept = {
            places[name].module: index[part]
            for (name, index), part in zip(channels.items(), parts, strict=True)
            if part.any()
        }
        return cls(
            kept,
            good.mean(0)[chosen].float(),
            good.std(0, correction=0)[chosen].clamp(min=_TINY).float(),
            torch.where(effect[chosen] < 0, -1.0, 1.0).float(),
            pool,
            keys(harmful, benign),
        )

    @contextmanager
    def watch(self, model: Any, batch: int, live: Callable[[], bool]) -> Iterator[_Watch]:
        """Watch the neurons' activations."""
        places = {Place(module, "input"): index.flatten() for module, index in self.channels.items()}
        with newest(model, places, batch, live) as found:
            yield _Watch(self, found)

    def settings(self) -> dict[str, Any]:
        """How to pool, and on what it was fitted."""
        return {"pool": self.pool, "prompts": list(self.prompts)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Channels by module, and the neurons' usual level."""
        channels = {f"channels.{module}": index for module, index in self.channels.items()}
        return {**channels, "mean": self.mean, "deviation": self.deviation, "sign": self.sign}

    @classmethod
    def load(cls, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> NeuronTrigger:
        """The trigger of these settings and tensors.

        Raises:
            GuardError: if they do not belong together.
        """
        require_settings(cls.name, settings, "pool", "prompts")
        prefix = "channels."
        channels = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        others = {name: tensors[name] for name in tensors.keys() - {prefix + module for module in channels}}
        whole = all(index.dim() == 2 and index.dtype == torch.int64 for index in channels.values())
        if set(others) != {"mean", "deviation", "sign"} or not channels or not whole:
            raise GuardError(
                f"trigger 'neurons': found tensors {sorted(tensors)}; expected channels.*, int64 [neurons, "
                "width], with mean, deviation and sign"
            )
        return cls(channels, **others, pool=settings["pool"], prompts=tuple(settings["prompts"]))


class _Watch:
    def __init__(self, trigger: NeuronTrigger, found: dict[Place, torch.Tensor]) -> None:
        self.trigger, self.found = trigger, found
        self.widths = {Place(module, "input"): index.shape[1] for module, index in trigger.channels.items()}
        self.level: tuple[torch.Tensor, torch.Tensor] | None = None

    def values(self, step: Step) -> torch.Tensor:
        """The pooled standardised activations of the judged rows."""
        parts = [_norms(self.found[place], width) for place, width in self.widths.items()]
        activations = torch.cat([part.to(parts[0].device) for part in parts], -1)
        if self.level is None:
            scale = self.trigger.sign / self.trigger.deviation
            self.level = self.trigger.mean.to(activations.device), scale.to(activations.device)
        mean, scale = self.level
        standard = (activations - mean) * scale
        pooled = standard.mean(-1) if self.trigger.pool == "mean" else standard.amax(-1)
        return pooled[step.rows]

    def fired(self, rows: list[int]) -> None:
        """A neuron of the model keeps no memory of it."""


def _candidates(
    among: NeuronMask | NeuronScores | None, neuron_map: NeuronMap, count: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Site -> indices of the neurons to choose from."""
    if isinstance(among, NeuronScores):
        names = list(among.values)
        order = np.argsort(-among.joined(names), kind="stable")[:count]
        sites = np.repeat(names, [len(among.values[name]) for name in names])
        local = np.concatenate([np.arange(len(among.values[name])) for name in names])
        return {name: np.sort(local[order[sites[order] == name]]) for name in names if (sites[order] == name).any()}
    if among is None:
        return {name: np.arange(site.neurons) for name, site in neuron_map.sites.items() if site.kind == "mlp"}
    among.check(neuron_map)
    return {name: np.flatnonzero(bits) for name, bits in among.bits.items() if bits.any()}


def _levels(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Activations [tokens, neurons] from those of all channels [tokens, channels]."""
    return _norms(values[:, index.flatten()], index.shape[1])


def _norms(values: torch.Tensor, width: int) -> torch.Tensor:
    """Float32 [rows, neurons] from [rows, neurons * width]."""
    values = values.float()
    return values if width == 1 else values.unflatten(-1, (-1, width)).norm(dim=-1)
