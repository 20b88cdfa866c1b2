"""The safety rows of gate_proj and up_proj: those with outstanding weight in a probe for harm, each on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neurofreeze.data.batches import batches
from neurofreeze.data.examples import Example
from neurofreeze.errors import ArchitectureError, ConfigError
from neurofreeze.methods.nest.clusters import Profiles
from neurofreeze.neurons import IndexArray, NeuronMap, Site
from neurofreeze.strategies.observing import observe
from neurofreeze.strategies.probe import Probe, projections
from neurofreeze.strategies.resuming import Turns

_GATED = 2  # projections that a gated MLP reads through


@dataclass(frozen=True, eq=False)
class SafetyRows:
    """What a probe chose of one projection.

    Attributes:
        parameter: the weight, which a fused gate_up_proj shares between two projections.
        rows: int64 [chosen], ascending.
        profiles: each row's largest output over the tokens of each prompt, float64 [chosen, prompts]; harmful prompts
            first.
    """

    parameter: str
    rows: IndexArray
    profiles: Profiles


def safety_rows(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Example]],
    probe: Probe,
    threshold: float,
    *,
    batch_size: int = 8,
    max_length: int | None = 512,
    progress: Callable[[], None] | None = None,
) -> list[SafetyRows]:
    """The rows whose weight in their projection's probe is positive and exceeds `threshold` standard deviations.

    Args:
        model: a transformers causal language model with dense gated MLPs.
        tokenizer: its tokenizer.
        sets: "safety", harmful prompts, and "utility", ordinary ones, with answers.
        probe: how the probes are trained.
        threshold: of the z-score of a row's weight among those of its projection, not below 0.
        batch_size: conversations a batch.
        max_length: tokens kept of each conversation.
        progress: called after each batch.

    Raises:
        ArchitectureError: if an MLP has no gate, or experts.
        ConfigError: if no row is chosen.
    """
    neuron_map = NeuronMap.of(model)
    require_gated(neuron_map)
    seen = {role: probe.watch(neuron_map) for role in probe.sets}
    for role, statistics in seen.items():
        observe(model, list(batches(tokenizer, sets[role], batch_size, max_length)), [statistics], Turns(progress))
    found = []
    device = next(model.parameters()).device
    for site in neuron_map.sites.values():
        for member in projections(site, neuron_map):
            maxima = tuple(probe.maxima(seen, role, member)[0] for role in probe.sets)
            values = torch.cat([batch for part in maxima for batch in part.rows]).double().numpy()
            for lines in member.index.T:
                rows = np.sort(lines[probe.row_scores(maxima, lines, device) > threshold])
                if len(rows):
                    found.append(SafetyRows(member.parameter, rows, np.ascontiguousarray(values[:, rows].T)))
    if not found:
        raise ConfigError(f"no row's probe weight has a z-score above {threshold}; lower the threshold")
    return found


def require_gated(neuron_map: NeuronMap) -> None:
    """Raise ArchitectureError unless every MLP reads through a gate_proj and an up_proj, or both in one matrix."""
    for site in neuron_map.sites.values():
        if site.kind == "mlp" and not _gated(site, neuron_map):
            read = ", ".join(member.parameter for member in site.reads)
            raise ArchitectureError(
                f"{site.name} reads through {read}; NeST updates rows of dense gated MLPs, which have a gate_proj and "
                "an up_proj or both in one matrix. To freeze neurons of this model use another method"
            )


def _gated(site: Site, neuron_map: NeuronMap) -> bool:
    found = list(projections(site, neuron_map))
    dense = all(member.axis == 0 and len(neuron_map.shapes[member.parameter]) == 2 for member in found)
    return dense and sum(member.index.shape[1] for member in found) == _GATED
