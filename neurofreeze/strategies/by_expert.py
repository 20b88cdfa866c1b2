"""Statistics of a stack of experts: one an expert, each over the tokens that reached it.

So counts, means and pooling over prompts are those of the tokens that an expert computed, not of all tokens, and a
prompt of which no token reached an expert is none of its prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from neurofreeze.neurons import Member, NeuronMap
from neurofreeze.strategies.observing import Statistic, Tokens


class ByExpert:
    """One statistic an expert."""

    def __init__(self, make: Callable[[], Statistic], experts: int) -> None:
        self.each = [make() for _ in range(experts)]

    def update(self, tokens: Tokens) -> None:
        """Add a batch's tokens, each to the experts that it reached."""
        for statistic, own in zip(self.each, tokens.by_expert(), strict=True):
            statistic.update(own)

    def merge(self, other: ByExpert) -> None:
        """Add all that another has seen."""
        for statistic, own in zip(self.each, other.each, strict=True):
            statistic.merge(own)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was gathered, "<expert>.<what it is called there>"."""
        return {
            f"{expert}.{name}": tensor
            for expert, own in enumerate(self.each)
            for name, tensor in own.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the place of what was gathered here."""
        parts: list[dict[str, torch.Tensor]] = [{} for _ in self.each]
        for name, tensor in state.items():
            expert, _, inner = name.partition(".")
            parts[int(expert)][inner] = tensor
        for statistic, part in zip(self.each, parts, strict=True):
            statistic.load_state_dict(part)


def statistic_for(member: Member, neuron_map: NeuronMap, make: Callable[[], Statistic]) -> Statistic:
    """A new statistic for what flows past a matrix, or one for each of a stack of experts."""
    shape = neuron_map.shapes[member.parameter]
    return ByExpert(make, shape[0]) if len(shape) == 3 else make()


def each(statistic: Any) -> list[Any]:
    """The experts' statistics, or the only one."""
    return statistic.each if isinstance(statistic, ByExpert) else [statistic]


def stacked(statistic: Any, read: Callable[[Any], torch.Tensor | float]) -> torch.Tensor:
    """What `read` finds for each expert, or for the only matrix, on the CPU: [experts or 1, channels].

    A number, which stands for nothing seen, is that of every channel.
    """
    found = [torch.as_tensor(read(own), dtype=torch.float64).cpu() for own in each(statistic)]
    return torch.stack(torch.broadcast_tensors(*found))
