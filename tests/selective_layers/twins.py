"""One model twice: selective, and ordinary under the dense mask that it must equal."""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple

import torch

import neurofreeze as nf
from tests import reference, tiny
from tests.reference import Dense, mask_for

Train = Literal["masked", "unmasked"]
MODES: tuple[Train, ...] = ("masked", "unmasked")


class Twins(NamedTuple):
    """`frozen` says what of the ordinary model, and so of the selective one, must not move."""

    ordinary: Any
    selective: Any
    frozen: Dense
    mask: nf.NeuronMask


def twins(model: Any, train: Train, granularity: Any = "head") -> Twins:
    mask = mask_for(model, fraction=0.4, granularity=granularity)
    selective = nf.selective(copy.deepcopy(model), mask, train=train)
    return Twins(model, selective, still(model, mask, train), mask)


def still(model: Any, mask: nf.NeuronMask, train: Train) -> Dense:
    """What stays frozen, element by element."""
    if train == "unmasked":
        return reference.dense(model, mask)
    frozen = reference.dense(model, ~mask)
    for name in nf.NeuronMap.of(model, mask.config.granularity).rest:
        if name in frozen:  # of tied parameters a model names one
            frozen[name].fill_(True)
    return frozen


def of(architecture: str, train: Train, dtype: torch.dtype = torch.float64, **changes: Any) -> Twins:
    return twins(tiny.model(architecture, dtype=dtype, **changes), train)


def adamw(model: Any, **options: Any) -> torch.optim.Optimizer:
    # A large eps: Adam divides by the root of moments, which would blow up the rounding of gradients that are zero
    # but for rounding (those of key biases); products of fewer rows may add up in another order.
    options = {"lr": 0.05, "weight_decay": 0.1, "eps": 1e-2, **options}
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **options)


class Losses(list[float]):
    """The loss of each forward pass of a model."""

    def __init__(self, model: Any) -> None:
        model.register_forward_hook(lambda _, __, output: self.append(output.loss.item()))


def distance(ordinary: Any, selective: Any) -> float:
    """The largest difference of a parameter's elements, by the parameter's largest element."""
    one, two = ordinary.state_dict(), selective.state_dict()
    assert one.keys() == two.keys()
    return max(float((two[name] - p).abs().max() / p.abs().max()) for name, p in one.items())


def assert_moved_where_it_may(selective: Any, start: dict[str, torch.Tensor], frozen: Dense) -> None:
    """Frozen elements have the bits they had, and others moved."""
    now = selective.state_dict()
    moved = 0
    for name, before in start.items():
        at = frozen[name]
        assert torch.equal(reference.bits(now[name][at]), reference.bits(before[at])), name
        moved += int((now[name] != before)[~at].sum())
    assert moved > 0.9 * sum(int((~at).sum()) for at in frozen.values())
