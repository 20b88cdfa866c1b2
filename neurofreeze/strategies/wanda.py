"""Wanda summed over a neuron's weights (Wei et al. 2024, arXiv 2402.05162, section 3; Wanda itself: 2306.11695).

A weight's score is |W_ij| * ||X_j||_2, where X_j is channel j of the input of the matrix that the weight belongs to,
over the tokens of the answers: Wei et al. leave the prompts out, since only what the model says is to be explained. A
neuron's is the sum over all of its weights: its rows of the matrices that read, its columns of the one that writes.
Biases multiply no input and do not count. A key or value row that grouped query heads share counts in full for each of
them.

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
from neurofreeze.neurons import Member, NeuronMap, Site
from neurofreeze.strategies.base import Seen
from neurofreeze.strategies.observing import Point, Positions, Statistic
from neurofreeze.strategies.options import require_one_of
from neurofreeze.strategies.scores import NeuronScores
from neurofreeze.strategies.statistics import SumOfSquares
from neurofreeze.strategies.weights import parameters, whole


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

    def __post_init__(self) -> None:
        require_one_of("positions", self.positions, Positions)

    def watch(self, neuron_map: NeuronMap) -> dict[Point, Statistic]:
        """The norm of every channel that a weight of a neuron multiplies."""
        sites = neuron_map.sites.values()
        return {point: SumOfSquares(self.positions) for site in sites for _, point in _matrices(site)}

    def score(self, model: Any, neuron_map: NeuronMap, seen: Seen) -> NeuronScores:
        """The sum over each neuron's weights.

        Raises:
            DataError: if the calibration set has no tokens at these positions.
        """
        norms = {point: statistic.norm() for point, statistic in seen["safety"].items()}
        if not any(norm.any() for norm in norms.values()):
            raise DataError(
                f"no conversation of the calibration set has tokens at positions={self.positions!r}; is max_length too "
                "short for the answers?"
            )
        weights, values = parameters(model), {}
        for name, site in neuron_map.sites.items():
            total = torch.zeros(site.neurons, dtype=torch.float64)
            for member, point in _matrices(site):
                # [the member's rows or columns, what they are summed over]
                lines = whole(weights[member.parameter]).movedim(member.axis, 0).double().abs()
                norm = norms[point].to(lines.device)
                scores = lines.sum(1) * norm if member is site.writes else lines @ norm
                total += scores.cpu()[torch.from_numpy(member.index)].sum(1)
            values[name] = total.numpy().astype("float32")
        return NeuronScores(neuron_map, values, asdict(self))


def _matrices(site: Site) -> Iterator[tuple[Member, Point]]:
    yield site.writes, Point.activations(site)
    for member in site.reads:
        if not member.parameter.endswith(".bias"):
            yield member, Point(member.parameter.removesuffix(".weight"), "input")
