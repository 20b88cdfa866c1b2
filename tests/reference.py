"""Training with frozen elements, spelled out: a dense mask and four lines round every step. What Freezer must equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap

if TYPE_CHECKING:
    from collections.abc import Iterable

Dense = dict[str, torch.Tensor]
Batches = list[torch.Tensor]

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dense(model: Any, mask: NeuronMask) -> Dense:
    """Parameter name -> bool tensor of its shape, True where frozen, set neuron by neuron."""
    found = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in model.named_parameters()}
    for site in NeuronMap.of(model, mask.config.granularity).sites.values():  # type: ignore[arg-type]
        for member in site.members:
            for neuron in mask.bits[site.name].nonzero()[0]:
                for index in member.index[neuron].tolist():
                    line(found[member.parameter], member.axis, index).fill_(True)
    return found


def line(tensor: torch.Tensor, axis: int, index: int) -> torch.Tensor:
    """A row, a column or (axis 2) an element of a matrix or a stack of them, counted as a Selection counts."""
    if axis == 2:
        return tensor.view(-1)[index]
    if tensor.dim() < 3:
        return tensor.select(axis, index)
    matrix, within = divmod(index, tensor.shape[axis + 1])
    return tensor[matrix].select(axis, within)


def batches(steps: int, accumulation: int = 1, size: tuple[int, int] = (2, 7), seed: int = 0) -> list[Batches]:
    """For each step its micro-batches of token ids, all different."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randint(0, 64, size, generator=generator) for _ in range(accumulation)] for _ in range(steps)]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits as integers, for comparisons in which -0.0 is not 0.0."""
    return tensor.detach().view(INTEGERS[tensor.element_size()])


def weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def backward(model: Any, micro_batches: Batches) -> None:
    """Accumulate the gradients of the mean loss."""
    for ids in micro_batches:
        (model(input_ids=ids, labels=ids).loss / len(micro_batches)).backward()


def train_frozen(
    model: Any, optimizer: torch.optim.Optimizer, steps: Iterable[Batches], frozen: Dense, clip: float = 0.5
) -> list[torch.Tensor]:
    """Train with the elements in `frozen` held; returns the norm before clipping at each step."""
    norms = []
    named = dict(model.named_parameters())
    saved = {name: p.detach()[frozen[name]].clone() for name, p in named.items()}
    for micro_batches in steps:
        backward(model, micro_batches)
        for name, p in named.items():
            if p.grad is not None:
                p.grad[frozen[name]] = 0
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
        optimizer.step()
        with torch.no_grad():
            for name, p in named.items():
                p[frozen[name]] = saved[name]
                for moment in optimizer.state[p].values():
                    if torch.is_tensor(moment) and moment.shape == p.shape:
                        moment[frozen[name]] = 0
        optimizer.zero_grad()
    return norms


def train(
    model: Any, optimizer: torch.optim.Optimizer, steps: Iterable[Batches], clip: float = 0.5
) -> list[torch.Tensor]:
    """Train as any user would, knowing nothing of frozen elements; returns the norm before clipping at each step."""
    norms = []
    for micro_batches in steps:
        backward(model, micro_batches)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def adamw(model: torch.nn.Module, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1, **options)


def mask_for(model: Any, fraction: float = 0.3, seed: int = 1, granularity: Any = "head") -> NeuronMask:
    return NeuronMask.random(NeuronMap.of(model, granularity), fraction, seed)


def assert_frozen(model: Any, start: dict[str, torch.Tensor], frozen: Dense) -> None:
    for name, p in model.named_parameters():
        assert torch.equal(bits(p)[frozen[name]], bits(start[name])[frozen[name]]), name


def assert_same(model: Any, other: Any) -> None:
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(bits(p), bits(q)), name


def assert_no_moments(model: Any, optimizer: torch.optim.Optimizer, frozen: Dense) -> None:
    for name, p in model.named_parameters():
        for key, moment in optimizer.state[p].items():
            if torch.is_tensor(moment) and moment.shape == p.shape:
                assert not moment[frozen[name]].any(), f"{name}.{key}"
