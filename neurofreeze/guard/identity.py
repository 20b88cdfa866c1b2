"""Which model a gate belongs to: its kind and sizes, and a fingerprint of samples of all its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from neurofreeze.errors import GuardError
from neurofreeze.neurons import canonical_name

_SAMPLES = 64  # elements of each parameter


def identity(model: Any) -> dict[str, Any]:
    """What `require_same` compares, as JSON values.

    The fingerprint is the start of SHA-256 over 64 evenly spaced elements of every parameter, rounded to bfloat16, so
    that a model loaded at another precision stays the same one. It tells a fine-tuned model from its base; it is no
    proof against forgery.

    Raises:
        GuardError: if a weight is not there to be read, as when it is offloaded.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted((canonical_name(name), p) for name, p in model.named_parameters()):
        if parameter.device.type == "meta":
            raise GuardError(
                f"the weights of {name} are not in memory, so that a gate cannot tell which model this is; load the "
                "model without offloading"
            )
        flat = parameter.detach().flatten()
        count = min(_SAMPLES, len(flat))
        index = torch.linspace(0, max(0, len(flat) - 1), count, dtype=torch.float64, device=flat.device).long()
        sample = flat[index].to(torch.bfloat16).view(torch.int16).cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.tobytes())
    config = model.config.get_text_config()
    return {
        "name": getattr(model.config, "name_or_path", "") or None,
        "model_type": model.config.model_type,
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "vocabulary": config.vocab_size,
        "fingerprint": digest.hexdigest()[:32],
    }


def require_same(found: Mapping[str, Any], expected: Mapping[str, Any], what: str, other_weights: bool = False) -> None:
    """Raise GuardError unless two identities are of one model.

    Args:
        found: of the model that is there.
        expected: of the one that the gate was made for.
        what: "model" or "expert", for the message.
        other_weights: accept weights other than those the gate was made for, in a model of the same sizes.
    """
    for name in ("model_type", "hidden_size", "layers", "vocabulary"):
        if found[name] != expected.get(name):
            raise GuardError(
                f"the {what} has {name} {found[name]!r}, the gate was made for {expected.get(name)!r}; this gate "
                "belongs to another model"
            )
    if found["fingerprint"] != expected.get("fingerprint") and not other_weights:
        raise GuardError(
            f"the {what}'s weights are not those that the gate was made for ({expected.get('name')}): fine-tuned, or "
            "another revision. Calibrate a gate for it, or accept that its threshold is "
            "uncalibrated: other_weights=True"
        )
