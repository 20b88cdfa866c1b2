"""NeuroFreeze: fine-tune an aligned language model without losing its safety.

The public API is imported lazily, so that `neurofreeze --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neurofreeze._version import __version__

if TYPE_CHECKING:
    from neurofreeze.errors import (
        ArchitectureError,
        ConfigError,
        DataError,
        FreezeError,
        GuardError,
        MaskError,
        ModelError,
        NeuroFreezeError,
        NeuroFreezeWarning,
        RunError,
    )
    from neurofreeze.freezer import Freezer, freeze
    from neurofreeze.guard.gate import Gate
    from neurofreeze.integrations.callback import FreezeCallback
    from neurofreeze.launcher.launch import launch
    from neurofreeze.launcher.submitted import Submitted
    from neurofreeze.mask import NeuronMask
    from neurofreeze.neurons import NeuronMap
    from neurofreeze.rest import freeze_rest
    from neurofreeze.selective_layers import merge, selective
    from neurofreeze.strategies import NeuronScores, select
    from neurofreeze.verification import Verification, verify

_HOME = {
    "ArchitectureError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "FreezeCallback": "integrations.callback",
    "FreezeError": "errors",
    "Freezer": "freezer",
    "Gate": "guard.gate",
    "GuardError": "errors",
    "MaskError": "errors",
    "ModelError": "errors",
    "NeuroFreezeError": "errors",
    "NeuroFreezeWarning": "errors",
    "NeuronMap": "neurons",
    "NeuronMask": "mask",
    "NeuronScores": "strategies",
    "RunError": "errors",
    "Submitted": "launcher.submitted",
    "Verification": "verification",
    "freeze": "freezer",
    "freeze_rest": "rest",
    "launch": "launcher.launch",
    "merge": "selective_layers",
    "select": "strategies",
    "selective": "selective_layers",
    "verify": "verification",
}

__all__ = [
    "ArchitectureError",
    "ConfigError",
    "DataError",
    "FreezeCallback",
    "FreezeError",
    "Freezer",
    "Gate",
    "GuardError",
    "MaskError",
    "ModelError",
    "NeuroFreezeError",
    "NeuroFreezeWarning",
    "NeuronMap",
    "NeuronMask",
    "NeuronScores",
    "RunError",
    "Submitted",
    "Verification",
    "__version__",
    "freeze",
    "freeze_rest",
    "launch",
    "merge",
    "select",
    "selective",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'neurofreeze' has no attribute {name!r}")
    value = getattr(import_module(f"neurofreeze.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
