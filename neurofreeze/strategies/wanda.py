"""Wanda summed over a neuron's weights (Wei et al. 2024, arXiv 2402.05162, section 3; Wanda itself: 2306.11695).

A weight's score is |W_ij| * ||X_j||_2, where X_j is channel j of the input of the matrix that the weight belongs to,
over the tokens of the answers: Wei et al. leave the prompts out, since only what the model says is to be explained. A
neuron's is the sum over all of its weights: its rows of the matrices that read, its columns of the one that writes.
Biases multiply no input and do not count. A key or value row that grouped query heads share counts in full for each of
them. The inputs of an expert are those of the tokens that reached it, before their routing weights; the neurons of one
that none reached score 0.

Wei et al. score single weights and take the set difference "top q on safety minus top p on utility". For neurons that
is two calls of this strategy and the algebra of masks:

    safety.top(q) - utility.top(p)

Only ranks enter, so a constant factor, such as dividing the norm by the number of conversations, changes nothing.

When to use it: forward passes only; the closest published relative of WIFV that looks at what a neuron reads as well as
at what it writes, and at the size of activations rather than at their variance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from neurofreeze.errors import DataError
from neurofreeze.neurons import ELEMENTS, Member, NeuronMap, Site
from neurofreeze.strategies.base import Seen
from neurofreeze.strategies.by_expert import stacked, statistic_for
from neurofreeze.strategies.observing import Point, Positions, Statistic
from neurofreeze.strategies.options import require_one_of
from neurofreeze.strategies.scores import NeuronScores
from neurofreeze.strategies.statistics import SumOfSquares
from neurofreeze.strategies.weights import matrices, parameters


@dataclass(frozen=True)
class Wanda:
    """Wanda scores; a head's is the sum over all of its weights, not a mean over its channels.

    Args:
        positions: the tokens whose inputs count, "response", "prompt" or "all".

    Raises:
        ConfigError: for other positions.
    """

    positions: Positions = "response"
    name: str = "wanda"
    sets: ClassVar[tuple[str, ...]] = ("safety",)
    reads_weights: ClassVar[bool] = True  # which must not be quantized

    def __post_init__(self) -> None:
        require_one_of("positions", self.positions, Positions)

    def watch(self, neuron_map: NeuronMap) -> dict[Point, Statistic]:
        """The norm of every channel that a weight of a neuron multiplies."""
        return {
            point: statistic_for(member, neuron_map, lambda: SumOfSquares(self.positions))
            for site in neuron_map.sites.values()
            for member, point in _matrices(site, neuron_map)
        }

    def score(self, model: Any, neuron_map: NeuronMap, seen: Seen) -> NeuronScores:
        """The sum over each neuron's weights.

        Raises:
            DataError: if the calibration set has no tokens at these positions.
        """
        norms = {point: stacked(statistic, SumOfSquares.norm) for point, statistic in seen["safety"].items()}
        if not any(norm.any() for norm in norms.values()):
            raise DataError(
                f"no conversation of the calibration set has tokens at positions={self.positions!r}; is max_length too "
                "short for the answers?"
            )
        weights, values = parameters(model), {}
        for name, site in neuron_map.sites.items():
            total = torch.zeros(site.neurons, dtype=torch.float64)
            for member, point in _matrices(site, neuron_map):
                found = []
                for lines, norm in zip(matrices(weights[member.parameter], member.axis), norms[point], strict=True):
                    size, own = lines.abs(), norm.to(lines.device)
                    found.append(size.sum(1) * own if member is site.writes else size @ own)
                total += torch.cat(found).cpu()[torch.tensor(member.index)].sum(1)
            values[name] = total.numpy().astype("float32")
        return NeuronScores(neuron_map, values, asdict(self))


def _matrices(site: Site, neuron_map: NeuronMap) -> Iterator[tuple[Member, Point]]:
    yield site.writes, Point.activations(site)
    for member in site.reads:
        if member.axis != ELEMENTS and len(neuron_map.shapes[member.parameter]) > 1:
            yield member, Point(member.parameter.removesuffix(".weight"), "input")
