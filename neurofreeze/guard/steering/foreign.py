"""Steering vectors of other packages: control vectors of repeng and llama.cpp (GGUF), and those of steering-vectors.

steering-vectors has no file format of its own: its users torch.save a SteeringVector, or its `layer_activations`. Both
are pickles. torch's restricted unpickler reads them here, which builds tensors and plain containers and, as the one
class it is told of, a stand-in without any behaviour for SteeringVector; anything else in a file is refused unread.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from neurofreeze.errors import ModelError
from neurofreeze.guard.steering.vector import SteeringVector, VectorConfig

_ARCHITECTURE = "controlvector"
_DIRECTION = "direction."
_BLOCK = "decoder_block"  # what steering-vectors calls the output of a decoder block


class _Stored:
    """What is left of a pickled steering_vectors.SteeringVector: its attributes."""


def read_gguf(path: Path) -> SteeringVector:
    """A control vector: `direction.<layer>` tensors, as `repeng.ControlVector.export_gguf` and llama.cpp write them.

    Raises:
        ModelError: if the file is missing, unreadable or something else.
    """
    import gguf

    if not path.is_file():
        raise ModelError(f"no file {path}; expected a control vector of repeng or llama.cpp")
    try:
        reader = gguf.GGUFReader(path)
        architecture = _text(reader, "general.architecture")
        model_type = _text(reader, f"{_ARCHITECTURE}.model_hint")
        directions = {
            int(tensor.name.removeprefix(_DIRECTION)): _tensor(tensor)
            for tensor in reader.tensors
            if tensor.name.startswith(_DIRECTION)
        }
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{path} cannot be read as a GGUF control vector: {error}") from error
    if architecture != _ARCHITECTURE:
        raise ModelError(f"{path} is a GGUF file of {architecture!r}; expected a control vector of repeng or llama.cpp")
    return SteeringVector(directions, VectorConfig(model_type, recipe={"name": "gguf", "file": path.name}))


def write_gguf(vector: SteeringVector, path: str | Path) -> Path:
    """Write what repeng and llama.cpp read; strengths and where the vector came from are not part of the format."""
    import gguf

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, _ARCHITECTURE)
    writer.add_string(f"{_ARCHITECTURE}.model_hint", vector.config.model_type or "")
    writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(vector.directions))
    for layer, direction in sorted(vector.directions.items()):
        writer.add_tensor(f"{_DIRECTION}{layer}", direction.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_pt(path: Path) -> SteeringVector:
    """A steering_vectors.SteeringVector at the output of decoder blocks, or a dict of layer -> tensor, by torch.save.

    Raises:
        ModelError: if the file is missing or holds anything else.
    """
    if not path.is_file():
        raise ModelError(f"no file {path}; expected a vector of steering-vectors, saved by torch.save")
    allowed: list[Any] = [(_Stored, f"steering_vectors.{module}SteeringVector") for module in ("steering_vector.", "")]
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ModelError(
            f"{path} holds objects that only unpickling could make, which runs code from the file; save the tensors "
            "alone, torch.save(vector.layer_activations, path), or use safetensors"
        ) from error
    kind = _BLOCK
    if isinstance(found, _Stored):
        kind = getattr(found, "layer_type", _BLOCK)
        found = getattr(found, "layer_activations", None)
    elif isinstance(found, dict) and "layer_activations" in found:
        kind, found = found.get("layer_type", _BLOCK), found["layer_activations"]
    if kind != _BLOCK:
        raise ModelError(f"{path} steers {kind!r}; expected {_BLOCK!r}, the output of decoder blocks")
    plain = isinstance(found, dict) and all(
        isinstance(layer, int) and isinstance(tensor, torch.Tensor) for layer, tensor in found.items()
    )
    if not plain:
        raise ModelError(f"{path} holds {type(found).__name__}; expected a dict of layer -> tensor")
    if not all(map(_written_out, found.values())):
        raise ModelError(
            f"{path} has tensors with more entries than it stores; save them whole, as .clone() makes them"
        )
    directions = {layer: tensor.float().reshape(-1) for layer, tensor in found.items()}
    return SteeringVector(directions, VectorConfig(None, recipe={"name": "steering-vectors", "file": path.name}))


def _written_out(tensor: torch.Tensor) -> bool:
    # A view can repeat one stored number a billion times: a small file, which would fill the memory once it is read.
    return (
        tensor.layout == torch.strided and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


READERS: dict[str, Callable[[Path], SteeringVector]] = {".gguf": read_gguf, ".pt": read_pt, ".pth": read_pt}


def _text(reader: Any, key: str) -> str | None:
    field = reader.get_field(key)
    return None if field is None else str(field.contents()) or None


def _tensor(tensor: Any) -> torch.Tensor:
    import gguf

    return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
