"""Whole weights of models that hold only parts of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from accelerate.utils import align_module_device
from torch.distributed.tensor import DTensor

from neurofreeze.errors import ConfigError
from neurofreeze.neurons import NeuronMap, canonical_name


class Offloaded(NamedTuple):
    """A parameter that accelerate keeps in main memory or on disk while its module does not run."""

    module: torch.nn.Module
    name: str


Weight: TypeAlias = torch.nn.Parameter | Offloaded


def require_full_precision(model: Any, neuron_map: NeuronMap, strategy: str) -> None:
    """Raise ConfigError if neurons of the model have quantized weights, which are codes without their scales."""
    wanted = {member.parameter for member in neuron_map.members()}
    for name, parameter in model.named_parameters():
        coded = hasattr(parameter, "quant_state") or not parameter.is_floating_point() or parameter.element_size() < 2
        if coded and canonical_name(name) in wanted:
            raise ConfigError(
                f"strategy {strategy!r} reads weights, and those of {canonical_name(name)} are quantized; load the "
                "model in full precision, or use a strategy that reads activations alone, such as 'contrast' or 'probe'"
            )


def parameters(model: Any) -> dict[str, Weight]:
    """Canonical name -> parameter, whole or sharded, or where it is offloaded to."""
    found: dict[str, Weight] = {}
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        meta = parameter.device.type == "meta"
        found[canonical_name(name)] = Offloaded(model.get_submodule(module), leaf) if meta else parameter
    return found


def matrices(parameter: Weight, axis: int) -> Iterator[torch.Tensor]:
    """The rows (axis 0) or columns (axis 1) of a matrix, or of each of a stack of experts: float64 [lines, across].

    Collective where `whole` is.
    """
    found = whole(parameter)
    for matrix in found if found.dim() == 3 else found[None]:
        yield matrix.movedim(axis, 0).double()


def whole(parameter: Weight) -> torch.Tensor:
    """A parameter's values, gathered where FSDP2 or ZeRO-3 hold parts of it. Collective there."""
    if isinstance(parameter, Offloaded):
        with align_module_device(parameter.module, torch.device("cpu")):
            return cast(torch.Tensor, getattr(parameter.module, parameter.name)).detach()
    if isinstance(parameter, DTensor):
        return cast(DTensor, parameter.detach()).full_tensor()
    if hasattr(parameter, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()
