"""SNIP summed over a neuron's weights (Wei et al. 2024, arXiv 2402.05162, section 3; SNIP itself: 1810.02340).

A weight's score is the mean over examples of |W * dL/dW|, where L is the loss on the answer's tokens given the prompt:
how much the loss would change, to first order, without the weight. A neuron's is the sum over all of its weights: its
rows of the matrices that read, its columns of the one that writes. Biases and other vectors, which Wei et al. do not
score, do not count. A key or value row that grouped query heads share counts in full for each of them.

Wei et al. take one gradient an example, and so does `average="example"`: scores then do not depend on the batch size.
`average="batch"` takes one gradient a batch, of the mean loss over all its answer tokens, and averages over batches.
That is faster on a GPU and a different score: gradients that cancel within a batch count less.

As with Wanda, Wei et al. freeze "top q on safety minus top p on utility", which neurons get from two calls:

    safety.top(q) - utility.top(p)

When to use it: the gradient knows what the answer depends on, which sizes of activations do not; a forward and a
backward pass an example. No gradient is kept: each is reduced to neurons as soon as it is there, so memory is that of
a forward pass, one float64 a row or column, and the gradient of one parameter (of one layer under FSDP2).
Under FSDP2 every rank works on every example, since gradients are averaged over ranks before they can be seen: more
ranks make it possible, not faster. DeepSpeed takes gradients into its own hands; score before it wraps the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch.distributed.tensor import DTensor

from neurofreeze.data.batches import Batch
from neurofreeze.errors import ConfigError, DataError, NeuroFreezeError
from neurofreeze.neurons import ELEMENTS, NeuronMap
from neurofreeze.strategies import passes
from neurofreeze.strategies.base import Sets
from neurofreeze.strategies.options import require_one_of
from neurofreeze.strategies.resuming import Turns
from neurofreeze.strategies.scores import NeuronScores
from neurofreeze.strategies.weights import Offloaded, parameters

Average = Literal["example", "batch"]


@dataclass(frozen=True)
class Snip:
    """SNIP scores; a head's is the sum over all of its weights, not a mean over its channels.

    Args:
        average: what has one gradient: each "example" (the paper) or each "batch".

    Raises:
        ConfigError: for another value.
    """

    average: Average = "example"
    name: str = "snip"
    sets: ClassVar[tuple[str, ...]] = ("safety",)
    reads_weights: ClassVar[bool] = True  # which must not be quantized

    def __post_init__(self) -> None:
        require_one_of("average", self.average, Average)

    @torch.enable_grad()
    def run(self, model: Any, neuron_map: NeuronMap, sets: Sets, turns: Turns) -> NeuronScores:
        """The sum over each neuron's weights. Collective.

        Raises:
            ConfigError: under DeepSpeed and FSDP1, and where accelerate offloads weights.
            DataError: if the calibration set is empty or has no answers.
            NeuroFreezeError: if a parameter gets no gradient.
        """
        batches = passes.require_some(sets["safety"])
        count = sum(1 for batch in batches for _ in self._parts(batch))
        if not count:
            raise DataError("no conversation of the calibration set has an answer; is max_length too short for them?")
        weights = _weights(model, neuron_map)
        model = passes.unwrapped(model)
        sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        # FSDP2 puts gathered copies in the place of its parameters, so that they cannot be named here.
        only = None if sharded else [parameter for parameter, _ in weights.values()]
        products = _Products(weights)
        own = batches if sharded else passes.share(batches)
        with ExitStack() as stack:
            stack.enter_context(passes.evaluating(model))
            stack.enter_context(_own_gradients(model, [parameter for parameter, _ in weights.values()]))
            for parameter, _ in weights.values():
                stack.callback(parameter.register_post_accumulate_grad_hook(products.reduce).remove)
            for batch, counts in turns([(batch, True) for batch in own], products):
                products.counts = counts
                for part in self._parts(batch):
                    log_probs, _ = passes.answers(model, part)
                    torch.autograd.backward(-log_probs.mean(), inputs=only)
        found = _gathered(products.sums) if sharded else passes.summed(products.sums)
        if missing := [name for name in weights if name not in found]:
            raise NeuroFreezeError(
                f"{', '.join(missing[:3])} got no gradient from the answers; strategy 'snip' needs a model in which "
                "every neuron can be differentiated"
            )
        values = {
            name: sum(
                (found[m.parameter] / count).numpy()[m.index].sum(axis=1) for m in site.members if m.parameter in found
            ).astype("float32")
            for name, site in neuron_map.sites.items()
        }
        return NeuronScores(neuron_map, values, asdict(self))

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """What has one gradient: the batch, or each of its rows without padding; none without an answer."""
        whole = [batch] if self.average == "batch" else [_row(batch, row) for row in range(len(batch.indices))]
        return (part for part in whole if part.response_mask[:, 1:].any())


def _row(batch: Batch, row: int) -> Batch:
    kept = batch.attention_mask[row].bool()
    return Batch([batch.indices[row]], *(tensor[row][kept][None] for tensor in batch[1:]))


def _weights(model: Any, neuron_map: NeuronMap) -> dict[str, tuple[torch.nn.Parameter, int]]:
    """Canonical name -> the matrices that belong to neurons, and the axis of their lines.

    Raises:
        ConfigError: if their gradients cannot be had one by one.
    """
    found = parameters(passes.unwrapped(model))
    wanted = {
        m.parameter: m.axis
        for m in neuron_map.members()
        if m.axis != ELEMENTS and len(neuron_map.shapes[m.parameter]) > 1
    }
    if any(isinstance(found.get(name), Offloaded) for name in wanted):
        raise ConfigError(
            "strategy 'snip' needs the gradient of every parameter, and accelerate drops those of offloaded ones; load "
            "the model without offloading, or use a strategy with forward passes only"
        )
    deepspeed = any(base.__name__ == "DeepSpeedEngine" for base in type(model).__mro__)
    if deepspeed or any(hasattr(p, "ds_id") or hasattr(p, "_hp_mapping") for p in found.values()):
        raise ConfigError(
            "strategy 'snip' needs the gradient of every parameter, and DeepSpeed partitions or reduces them before "
            "they can be seen; score the model before deepspeed.initialize wraps it, or under FSDP2"
        )
    if missing := [name for name in wanted if name not in found]:
        raise ConfigError(
            f"strategy 'snip' needs the gradient of every parameter, but the model has no {missing[0]}; score the "
            "model before it is wrapped (FSDP1 flattens parameters), or under FSDP2"
        )
    return {name: (cast(torch.nn.Parameter, found[name]), axis) for name, axis in wanted.items()}


class _Products:
    """Sums of |W * dL/dW| over each line of every parameter, float64, sharded as the parameters are."""

    def __init__(self, weights: Mapping[str, tuple[torch.nn.Parameter, int]]) -> None:
        self.weights = weights
        self.names = {parameter: name for name, (parameter, _) in weights.items()}
        self.sums: dict[str, torch.Tensor] = {}
        self.counts = True

    @torch.no_grad()
    def reduce(self, parameter: torch.nn.Parameter) -> None:
        """Add a parameter's products, and let its gradient go."""
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None  # what the hook is called for
        if self.counts:
            name = self.names[parameter]
            product = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).mul_(parameter).abs_()
            lines = self._over_lines(name, product)
            self.sums[name] = self.sums[name] + lines if name in self.sums else lines

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The part of the sums that this rank holds."""
        return {name: _local(lines).cpu() for name, lines in self.sums.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the place of the sums."""
        for name, kept in state.items():
            self.sums[name] = self._over_lines(name, torch.zeros_like(self.weights[name][0]))
            _local(self.sums[name]).copy_(kept)

    def _over_lines(self, name: str, product: torch.Tensor) -> torch.Tensor:
        # Within a line in the products' precision, which is faster and as exact as the scores are.
        return product.sum(-1 if self.weights[name][1] == 0 else -2).flatten().double()


def _local(lines: torch.Tensor) -> torch.Tensor:
    return lines.to_local() if isinstance(lines, DTensor) else lines


def _gathered(products: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sums of whole parameters from those of their shards, on the CPU. Collective."""
    return {
        name: (lines.full_tensor() if isinstance(lines, DTensor) else lines).cpu() for name, lines in products.items()
    }


@contextmanager
def _own_gradients(model: torch.nn.Module, wanted: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """The wanted parameters require gradients; afterwards all parameters are as before, gradients included."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.grad = None
        for parameter in wanted:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
