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
Zero is where training starts here, so that the same data always give the same scores. Only MLP neurons are scored.

Every expert of a layer is an MLP with probes of its own, on the prompts of which a token reached it and the maxima over
those tokens. Where these are prompts of one set alone, or none, there is nothing to tell apart and its neurons score 0.
There are as many probes as experts and projections: for a model with thousands of experts training them takes longer
than the forward passes.

When to use it: to find the neurons that *tell* harmful from ordinary prompts, which a linear probe reads together
rather than one by one as SafeNeuron's contrast does. Forward passes only, both sets at once. One vector a prompt and
projection stays in main memory, in the model's precision, until the probes are trained: about 1.4 MB a prompt for a 7B
model in bfloat16. It does not grow with the length of the prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from neurofreeze.errors import DataError
from neurofreeze.mask import FloatArray
from neurofreeze.neurons import ELEMENTS, IndexArray, Member, NeuronMap, Site
from neurofreeze.strategies import passes
from neurofreeze.strategies.base import Seen
from neurofreeze.strategies.by_expert import each, statistic_for
from neurofreeze.strategies.observing import Point, Positions, Statistic, Tokens
from neurofreeze.strategies.options import require, require_one_of, require_switch
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
        require_switch("standardize", self.standardize)

    def watch(self, neuron_map: NeuronMap) -> dict[Point, Statistic]:
        """Each prompt's maxima of every projection."""
        return {
            _output(member): statistic_for(member, neuron_map, lambda: PromptMaxima(self.positions))
            for site in neuron_map.sites.values()
            for member in projections(site, neuron_map)
        }

    def score(self, model: Any, neuron_map: NeuronMap, seen: Seen) -> NeuronScores:
        """The largest z-score among a neuron's projections.

        Raises:
            DataError: if a set has no prompt with tokens at these positions.
        """
        device = passes.device(model)
        values = {}
        for name, site in neuron_map.sites.items():
            found: list[FloatArray] = []
            for member in projections(site, neuron_map):
                experts = list(zip(*(self.maxima(seen, role, member) for role in self.sets), strict=True))
                # Lines of a stack are counted through.
                lines = member.index.reshape(len(experts), -1, member.index.shape[1])
                lines = lines % neuron_map.shapes[member.parameter][member.axis - 2]
                scores = [self._scores(maxima, rows, device) for maxima, rows in zip(experts, lines, strict=True)]
                found.extend(np.concatenate(scores, axis=1))
            if found:
                values[name] = np.max(found, axis=0).astype(np.float32)
        return NeuronScores(neuron_map, values, asdict(self))

    def maxima(self, seen: Seen, role: str, member: Member) -> list[PromptMaxima]:
        """What was seen of one set, of each expert or of the only matrix.

        Raises:
            DataError: if no prompt of the set has tokens at these positions.
        """
        found = each(seen[role][_output(member)])
        if not any(maxima.rows for maxima in found):
            raise DataError(f"no prompt of the {role} set has tokens at positions={self.positions!r}")
        return found

    def _scores(self, maxima: tuple[PromptMaxima, ...], lines: IndexArray, device: torch.device) -> FloatArray:
        """A matrix's scores, [projections, neurons]; a neuron's lines are one a projection, [neurons, projections]."""
        if not all(found.rows for found in maxima):
            return np.zeros(lines.T.shape, dtype=np.float32)
        return np.stack([self.row_scores(maxima, rows, device) for rows in lines.T])

    def row_scores(self, maxima: tuple[PromptMaxima, ...], rows: IndexArray, device: torch.device) -> FloatArray:
        """The scores of a projection's rows, float64 [rows], by its prompts' maxima in each set."""
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

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was gathered: "rows", unless there are none."""
        return {"rows": torch.cat(self.rows)} if self.rows else {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the place of what was gathered here."""
        self.rows = list(state.values())


def projections(site: Site, neuron_map: NeuronMap) -> Iterator[Member]:
    """The matrices that an MLP reads through; one may hold several projections, as those of `member.index`."""
    for member in site.reads:
        if site.kind == "mlp" and member.axis != ELEMENTS and len(neuron_map.shapes[member.parameter]) > 1:
            yield member


def _output(member: Member) -> Point:
    return Point(member.parameter.removesuffix(".weight"), "output")
