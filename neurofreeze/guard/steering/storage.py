"""A steering vector as files: tensors in safetensors, what they are in JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

from neurofreeze.errors import ModelError
from neurofreeze.files import write_atomically
from neurofreeze.guard.steering.vector import FORMAT_VERSION, SteeringVector, VectorConfig

WEIGHTS = "steering_vector.safetensors"
CONFIG = "steering_vector_config.json"
_PREFIX = "layer."


def save(vector: SteeringVector, folder: Path) -> Path:
    """Write both files, the config last, so that a folder that has one is whole."""
    tensors = {f"{_PREFIX}{layer}": found.float().contiguous() for layer, found in vector.directions.items()}
    write_atomically(folder / WEIGHTS, safetensors_torch.save(tensors))
    write_atomically(folder / CONFIG, (json.dumps(asdict(vector.config), indent=1) + "\n").encode())
    return folder


def load(folder: Path) -> SteeringVector:
    """What `save` left.

    Raises:
        ModelError: if a file is missing or malformed, naming it.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"no {name} in {folder}; expected the folder of a steering vector, a .gguf or a .pt file")
    config = _config(folder / CONFIG)
    try:
        tensors = safetensors_torch.load_file(folder / WEIGHTS)
        directions = {int(name.removeprefix(_PREFIX)): tensor.float() for name, tensor in tensors.items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} is not a steering vector's weights: {error}") from error
    return SteeringVector(directions, config)


def _config(path: Path) -> VectorConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise ModelError(f"{path} has format_version {version!r}, expected {FORMAT_VERSION}; update neurofreeze")
        unknown = sorted(set(content) - {field.name for field in fields(VectorConfig)})
        if unknown:
            raise ModelError(f"{path} has the unknown fields {', '.join(unknown)}")
        norms = {int(layer): float(norm) for layer, norm in content["hidden_norms"].items()}
        return VectorConfig(**{**content, "hidden_norms": norms})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a steering vector's config: {error!r}") from error
