"""Attribution to the refusal margin: what a neuron's activation adds to the log-odds of refusing, to first order.

The margin of a prompt is, as in `neurofreeze.evaluation.likelihood`,

    M = mean_r log P(r | prompt) - mean_c log P(c | prompt)

over openings r of refusals ("I cannot") and c of compliance ("Sure, here"). With a_jn the activation of neuron j at
token n, the input of its block's second matrix, a neuron's score is gradient times activation,

    S_j = mean over prompts of sum_n a_jn * dM / da_jn,

over all tokens of the prompt and the openings. Scaling the neuron by 1 - eps changes the mean margin by -eps * S_j: a
positive score is a neuron that pushes towards refusing, a negative one a neuron that pushes towards complying. A head's
score is the sum over its channels, which is what scaling all of them does. The tokens of a neuron of an expert are
those that reached this expert (S is 0 where none did), and a is before their routing weights, which the gradient
contains. In no paper; the attribution is that of Sundararajan et al. (2017) with one step, or of Nanda's attribution
patching towards zero.

When to use it: it asks the causal question directly (what would the model's readiness to refuse lose without this
neuron?), where other scores ask what varies, is large, or differs between prompts, and it needs harmful prompts only,
without answers. One forward and one backward pass over every prompt with every opening; parameters get no gradients.
First-order only: a neuron that is switched off altogether may do more or less than its score says, neurons that stand
in for one another can all score low, and so can one whose gradient vanishes where an opening is certain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from neurofreeze.activations import Flow
from neurofreeze.data.batches import Batch, pad, prompt_ids
from neurofreeze.data.examples import Example
from neurofreeze.errors import NeuroFreezeError
from neurofreeze.evaluation.likelihood import COMPLYING, REFUSING
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import passes
from neurofreeze.strategies.base import Sets
from neurofreeze.strategies.options import require
from neurofreeze.strategies.resuming import Turns
from neurofreeze.strategies.scores import NeuronScores


@dataclass(frozen=True)
class Margin:
    """Gradient times activation of the refusal margin.

    Args:
        refusing: openings of refusals.
        complying: openings of compliance.

    Raises:
        ConfigError: if there is none of either.
    """

    refusing: Sequence[str] = REFUSING
    complying: Sequence[str] = COMPLYING
    name: str = "margin"
    sets: ClassVar[tuple[str, ...]] = ("safety",)

    def __post_init__(self) -> None:
        for option in ("refusing", "complying"):
            found = getattr(self, option)
            listed = not isinstance(found, str) and all(isinstance(text, str) and text for text in found)
            require(listed and len(found) > 0, option, found, "a list of openings")
            object.__setattr__(self, option, tuple(found))

    def batches(
        self, tokenizer: Any, examples: Sequence[Example], batch_size: int, max_length: int | None
    ) -> Sequence[Batch]:
        """Every prompt with every opening; opening o of prompt p is row p * openings + o. Prompts are never cut."""
        prompts = [prompt_ids(tokenizer, example) for example in examples]
        endings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*self.refusing, *self.complying)]
        rows = [(prompt + ending, len(prompt)) for prompt in prompts for ending in endings]
        return list(pad(rows, tokenizer.pad_token_id, batch_size))

    @torch.enable_grad()
    def run(self, model: Any, neuron_map: NeuronMap, sets: Sets, turns: Turns) -> NeuronScores:
        """S_j for every neuron j. Collective.

        Args:
            model: as for `select`.
            neuron_map: its neurons.
            sets: what `batches` makes of the harmful prompts.
            turns: takes its batches, and keeps the sums.

        Raises:
            DataError: if there is no prompt.
            NeuroFreezeError: if no gradient reaches a site.
        """
        batches, model = passes.require_some(sets["safety"]), passes.unwrapped(model)
        signs = torch.tensor(
            [1 / len(self.refusing)] * len(self.refusing) + [-1 / len(self.complying)] * len(self.complying)
        )
        attribution = _Attribution(neuron_map)
        with ExitStack() as stack:
            stack.enter_context(passes.evaluating(model))
            stack.enter_context(passes.watching(model, neuron_map.sites.values(), attribution.see))
            stack.callback(model.get_input_embeddings().register_forward_hook(attribution.start).remove)
            for batch, counts in turns(passes.turns(batches), attribution):
                log_probs, rows = passes.answers(model, batch)
                weights = signs[torch.tensor(batch.indices) % len(signs)].to(log_probs)
                attribution.backward((log_probs * weights[rows]).sum(), counts)
        prompts = sum(len(batch.indices) for batch in batches) / len(signs)
        totals = passes.summed(attribution.totals)
        values = {
            name: (totals[name] / prompts).numpy()[site.writes.index].sum(axis=1).astype(np.float32)
            for name, site in neuron_map.sites.items()
        }
        return NeuronScores(neuron_map, values, asdict(self))


class _Attribution:
    """Sums of activation times gradient over tokens, float64 [channels] by site, taken while gradients flow back."""

    def __init__(self, neuron_map: NeuronMap) -> None:
        channels = {name: site.writes.index.size for name, site in neuron_map.sites.items()}
        self.totals = {name: torch.zeros(size, dtype=torch.float64) for name, size in channels.items()}
        self.reached: dict[str, torch.Tensor] = {}  # of the present batch
        self.leaf: torch.Tensor

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The sums."""
        return self.totals

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the place of the sums."""
        self.totals = dict(state)

    def start(self, _: Any, __: Any, embedded: torch.Tensor) -> torch.Tensor:
        """Where gradients end: the embeddings of the tokens, so that no parameter needs any."""
        self.leaf = embedded.detach().requires_grad_()
        return self.leaf

    def see(self, name: str, activations: Flow) -> None:
        """Wait for the gradient of a site's activations."""

        def take(gradient: torch.Tensor) -> None:
            # In float32 at least: in float16 most products of a real model's would vanish.
            product = (values.to(wide) * gradient.to(wide)).flatten(0, -2)
            experts = product.split(routing.counts if routing else len(product))
            self.reached[name] = torch.cat([part.sum(0, dtype=torch.float64) for part in experts])

        values, routing = activations.values.detach(), activations.routing
        wide = torch.promote_types(values.dtype, torch.float32)
        if activations.values.requires_grad:
            activations.values.register_hook(take)

    def backward(self, margin: torch.Tensor, counts: bool) -> None:
        """Send gradients back from the margins of a batch, and add up what they meet if it counts."""
        self.reached = {}
        torch.autograd.grad(margin, self.leaf, allow_unused=True)
        if missing := [name for name in self.totals if name not in self.reached]:
            raise NeuroFreezeError(
                f"no gradient reached the activations of {', '.join(missing[:3])}; strategy 'margin' needs a model "
                "that can be differentiated from its answers down to its embeddings"
            )
        if counts:
            for name, total in self.totals.items():
                total += self.reached[name].cpu()
