"""Change of activations between two checkpoints (Chen et al. 2025, arXiv 2406.14144): what alignment has changed.

With a_jn the activation of neuron j at token n of an answer, the input of its block's second matrix, in the model and
in a reference that read the same conversations,

    S_j = sqrt(mean_n (a_jn - a'_jn)^2)

over all tokens of all answers. Chen et al. compare a base model with its aligned version on texts of the latter; here
the texts are the answers of the calibration set. The tokens of a neuron of an expert are those that reached this expert
in both models (S is 0 where none did), and a is before their routing weights: what a router changed is no change of a
neuron.

When to use it: with both sides of a safety fine-tune at hand, an aligned model and what it was made from: the score
finds neurons whose work alignment changed, whatever they did before. Two forward passes, no gradients, memory for two
models. It is blind to what already was in the reference, and says nothing about which differences matter.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from neurofreeze.activations import Flow
from neurofreeze.data.batches import Batch
from neurofreeze.errors import ConfigError, DataError
from neurofreeze.neurons import NeuronMap, Site
from neurofreeze.strategies import passes
from neurofreeze.strategies.base import Sets
from neurofreeze.strategies.observing import forward
from neurofreeze.strategies.options import require, require_switch
from neurofreeze.strategies.resuming import Turns
from neurofreeze.strategies.scores import NeuronScores


@dataclass(frozen=True)
class Change:
    """RMS differences; a head's is the mean over its channels.

    Args:
        reference: the other checkpoint: a folder, which is loaded in the model's precision beside it, or a model that
            is already loaded. Every rank holds a folder's model whole.
        attention: score attention neurons too. The paper looks at MLP neurons only; without it no attention neuron has
            a score.

    Raises:
        ConfigError: if the reference is no folder, or `attention` neither true nor false.
    """

    reference: Any
    attention: bool = False
    name: str = "change"
    sets: ClassVar[tuple[str, ...]] = ("safety",)

    def __post_init__(self) -> None:
        found = self.reference
        usable = isinstance(found, torch.nn.Module) or (isinstance(found, str | Path) and Path(found).is_dir())
        require(usable, "reference", found, "the folder of a checkpoint, or a model")
        require_switch("attention", self.attention)

    def require_fit(self, neuron_map: NeuronMap) -> None:
        """Raise ConfigError if the reference does not have these neurons."""
        from neurofreeze.models.load import load_config

        found = self.reference if isinstance(self.reference, torch.nn.Module) else load_config(Path(self.reference))
        if NeuronMap.of(found, neuron_map.granularity).digest != neuron_map.digest:
            raise ConfigError(
                f"reference {self._record()['reference']} has other neurons than the model; expected a checkpoint of "
                "the same architecture and sizes"
            )

    @torch.no_grad()
    def run(self, model: Any, neuron_map: NeuronMap, sets: Sets, turns: Turns) -> NeuronScores:
        """S_j for every neuron j. Collective.

        Raises:
            ConfigError: if the reference does not have the same neurons.
            DataError: if the calibration set is empty or has no answers.
        """
        batches = passes.require_some(sets["safety"])
        self.require_fit(neuron_map)
        reference = self._loaded(model)
        before, after = _Answers(), _Answers()
        sites = [site for site in neuron_map.sites.values() if self.attention or site.kind == "mlp"]
        # [experts or 1, channels], and over how many tokens
        squares = {site.name: torch.zeros(_stack(site, neuron_map), dtype=torch.float64) for site in sites}
        tokens = {name: torch.zeros(len(total), 1, dtype=torch.int64) for name, total in squares.items()}
        if not any(batch.response_mask.any() for batch in batches):
            raise DataError("no conversation of the calibration set has an answer; is max_length too short for them?")
        with ExitStack() as stack:
            for each, seen in ((reference, before), (model, after)):
                stack.enter_context(passes.evaluating(each))
                stack.enter_context(passes.watching(each, sites, seen.see))
            for batch, counts in turns(passes.turns(batches)):
                before.batch = after.batch = batch
                forward(reference, batch)
                forward(model, batch)
                for name in squares if counts else ():
                    for expert, pair in enumerate(zip(before.values[name], after.values[name], strict=True)):
                        difference = _difference(*pair)
                        squares[name][expert] += difference.square().sum(0).cpu()
                        tokens[name][expert] += len(difference)
        squares, tokens = passes.summed(squares), passes.summed(tokens)
        values = {}
        for name, total in squares.items():
            channels = (total / tokens[name].clamp(min=1)).sqrt().flatten().numpy()
            values[name] = channels[neuron_map.sites[name].writes.index].mean(axis=1).astype(np.float32)
        return NeuronScores(neuron_map, values, self._record())

    def _loaded(self, model: Any) -> Any:
        from neurofreeze.models.load import load_model

        if isinstance(self.reference, torch.nn.Module):
            return self.reference
        return load_model(Path(self.reference), next(model.parameters()).dtype).to(passes.device(model))

    def _record(self) -> dict[str, Any]:
        given = self.reference
        name = getattr(passes.unwrapped(given), "name_or_path", "") if isinstance(given, torch.nn.Module) else given
        return {"reference": str(name), "attention": self.attention, "name": self.name}


_Part = tuple[torch.Tensor, torch.Tensor]  # activations [tokens, channels], and which tokens of the batch, ascending


class _Answers:
    """One batch's activations on the tokens of the answers, by site for each expert or the only matrix."""

    def __init__(self) -> None:
        self.batch: Batch
        self.values: dict[str, list[_Part]] = {}

    def see(self, name: str, activations: Flow) -> None:
        """Keep a site's activations until the next batch."""
        values, routing = activations.values.flatten(0, -2), activations.routing
        tokens = routing.tokens if routing else torch.arange(len(values), device=values.device)
        parts = [part.split(routing.counts if routing else len(values)) for part in (values, tokens)]
        response = self.batch.response_mask.flatten().to(values.device)
        self.values[name] = [(v[response[t]], t[response[t]]) for v, t in zip(*parts, strict=True)]


def _difference(old: _Part, new: _Part) -> torch.Tensor:
    """New minus old on the tokens that both have, float64 [tokens, channels]."""
    (before, old_tokens), (after, new_tokens) = old, new
    old_tokens = old_tokens.to(new_tokens.device)
    kept = before[torch.isin(old_tokens, new_tokens).to(before.device)]
    return after[torch.isin(new_tokens, old_tokens)].double() - kept.to(after.device, torch.float64)


def _stack(site: Site, neuron_map: NeuronMap) -> tuple[int, int]:
    """(experts or 1, channels of each)."""
    shape = neuron_map.shapes[site.writes.parameter]
    experts = shape[0] if len(shape) == 3 else 1
    return experts, site.writes.index.size // experts
