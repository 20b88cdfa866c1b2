"""Linear probes for harm on what MLP neurons read (NeST, arXiv 2602.16835; after NeuroStrike): z-scores of weights.

For every MLP and each of its projections (gate_proj, up_proj) the outputs are reduced to one vector a prompt by their
maximum over its tokens, and a logistic regression learns to tell harmful prompts (1) from ordinary ones (0): binary
cross-entropy, Adam with learning rate 1e-3 and weight decay 1e-3, all prompts in one batch, weights starting at zero.
With w the probe's weights, z = (w - mean w) / std w over the projection's rows. A neuron's score is the largest z among
its projections; a projection whose weight is not positive counts as at most that weight. So the paper's rule, z > 3 and
w > 0 for either projection, is

    scores.above(3)

The number of epochs and whether activations are standardised are not stated. On SmolLM2-135M-Instruct 300 epochs, 1000
and 3000 choose between 1.8 and 2.0 % of all neurons; with standardised activations no weight stands out by z > 3.
Zero is where training starts here, so that the same data always give the same scores. Only MLP neurons with matrices of
their own are scored: no attention, and no stacks of experts.

When to use it: to find the neurons that *tell* harmful from ordinary prompts, which a linear probe reads together
rather than one by one as SafeNeuron's contrast does. Forward passes only, both sets at once. One vector a prompt and
projection stays in main memory, in the model's precision, until the probes are trained: about 1.4 MB a prompt for a 7B
model in bfloat16. It does not grow with the length of the prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from neurofreeze.errors import ArchitectureError, DataError
from neurofreeze.mask import FloatArray
from neurofreeze.neurons import IndexArray, NeuronMap, Site
from neurofreeze.strategies.base import Seen
from neurofreeze.strategies.observing import Point, Positions, Statistic, Tokens
from neurofreeze.strategies.options import require, require_one_of
from neurofreeze.strategies.scores import NeuronScores

_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Probe:
    """NeST's selection as a score.

    Args:
        epochs: steps of Adam, each over all prompts.
        learning_rate: of Adam.
        weight_decay: of Adam, added to the gradient.
        standardize: subtract each activation's mean over prompts and divide by its standard deviation first.
        positions: the tokens whose maximum is taken, those of the "prompt" (the paper), of the "response", or "all".

    Raises:
        ConfigError: for an unknown choice or a number out of range.
    """

    epochs: int = 300
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    standardize: bool = False
    positions: Positions = "prompt"
    name: str = "probe"
    sets: ClassVar[tuple[str, ...]] = ("safety", "utility")

    def __post_init__(self) -> None:
        require(type(self.epochs) is int and self.epochs > 0, "epochs", self.epochs, "a whole number above 0")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number not below 0")
        require_one_of("positions", self.positions, Positions)

    def watch(self, neuron_map: NeuronMap) -> dict[Point, Statistic]:
        """Each prompt's maxima of every projection.

        Raises:
            ArchitectureError: if no MLP has matrices of its own.
        """
        found: dict[Point, Statistic] = {
            point: PromptMaxima(self.positions)
            for site in neuron_map.sites.values()
            for point, _ in _projections(site, neuron_map)
        }
        if not found:
            raise ArchitectureError(
                "every MLP of this model is a stack of experts, whose projections are no modules that can be watched; "
                "use a strategy other than 'probe'"
            )
        return found

    def score(self, model: Any, neuron_map: NeuronMap, seen: Seen) -> NeuronScores:
        """The largest z-score among a neuron's projections.

        Raises:
            DataError: if a set has no prompt with tokens at these positions.
        """
        device = next(model.parameters()).device
        values = {}
        for name, site in neuron_map.sites.items():
            found = [
                self._scores([seen[role][point] for role in self.sets], rows, device)
                for point, rows in _projections(site, neuron_map)
            ]
            if found:
                values[name] = np.max(found, axis=0).astype(np.float32)
        return NeuronScores(neuron_map, values, asdict(self))

    def _scores(self, maxima: list[PromptMaxima], rows: IndexArray, device: torch.device) -> FloatArray:
        """A projection's scores, float64 [neurons]."""
        for role, found in zip(self.sets, maxima, strict=True):
            if not found.rows:
                raise DataError(f"no prompt of the {role} set has tokens at positions={self.positions!r}")
        harmful, ordinary = (torch.cat(found.rows)[:, torch.tensor(rows)].to(device, torch.float64) for found in maxima)
        x = torch.cat([harmful, ordinary])
        y = torch.cat([torch.ones(len(harmful)), torch.zeros(len(ordinary))]).to(x)
        if self.standardize:
            x = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=_TINY)
        w = self._fit(x, y).cpu().numpy()
        z = (w - w.mean()) / max(float(w.std()), _TINY)
        return np.where(w > 0, z, np.minimum(z, w))

    @torch.enable_grad()
    def _fit(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Weights of the logistic regression of y [samples] on x [samples, features]."""
        w, b = (x.new_zeros(size, requires_grad=True) for size in (x.shape[1], 1))
        adam = torch.optim.Adam([w, b], self.learning_rate, weight_decay=self.weight_decay)
        for _ in range(self.epochs):
            adam.zero_grad()
            F.binary_cross_entropy_with_logits(x @ w + b, y).backward()
            adam.step()
        return w.detach()


class PromptMaxima:
    """The maximum of every channel over each prompt's tokens: one vector a prompt, kept in the model's precision."""

    def __init__(self, positions: Positions) -> None:
        self.positions: Positions = positions
        self.rows: list[torch.Tensor] = []  # [prompts of a batch, channels] each, on the CPU

    def update(self, tokens: Tokens) -> None:
        """Add a batch's prompts."""
        found = tokens.pooled("max", self.positions)
        if len(found):
            # A maximum is one of the values, so that their own precision holds it exactly.
            self.rows.append(found.to(tokens.values.dtype).cpu())

    def merge(self, other: PromptMaxima) -> None:
        """Add the prompts that another rank has seen."""
        self.rows += other.rows


def _projections(site: Site, neuron_map: NeuronMap) -> Iterator[tuple[Point, IndexArray]]:
    """Where each of an MLP's projections comes out, and which channels there are its neurons', int64 [neurons]."""
    for member in site.reads:
        if (
            site.kind == "mlp"
            and len(neuron_map.shapes[member.parameter]) == 2
            and member.parameter.endswith(".weight")
        ):
            for channels in member.index.T:
                yield Point(member.parameter.removesuffix(".weight"), "output"), channels
