"""Finding a model's parameters by the names they have without any wrapper."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from neurofreeze.errors import FreezeError
from neurofreeze.neurons import canonical_name


def find(model: nn.Module, names: Collection[str]) -> dict[str, nn.Parameter]:
    """Canonical name -> parameter.

    Raises:
        FreezeError: if one is missing or has no storage.
    """
    parameters = {canonical_name(name): p for name, p in model.named_parameters()}
    for name in names:
        if name not in parameters:
            raise FreezeError(f"{name} is in the mask but not in the model, whose parameters are {_some(parameters)}")
        if parameters[name].is_meta:
            raise FreezeError(f"{name} has no storage yet (device meta); freeze after the weights are loaded")
    return {name: parameters[name] for name in names}


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")
