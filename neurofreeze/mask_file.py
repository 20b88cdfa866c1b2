"""The mask's format on disk: packed bits in safetensors, a JSON config, a card. Nothing is pickled or executed.

`neuron_mask.safetensors` holds for each site a uint8 tensor `<site>` of ceil(neurons / 8) bytes, bit j % 8 (least
significant first) of byte j // 8 being neuron j, and optionally `<site>.scores`, float32 [neurons].
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurofreeze.errors import MaskError
from neurofreeze.files import read_json_file, write_atomically

if TYPE_CHECKING:
    from neurofreeze.mask import MaskConfig, NeuronMask

WEIGHTS = "neuron_mask.safetensors"
CONFIG = "neuron_mask_config.json"
CARD = "README.md"

_TYPES: dict[str, tuple[type, ...]] = {
    "model_type": (str,),
    "granularity": (str,),
    "layout": (str,),
    "neurons": (dict,),
    "model": (str, type(None)),
    "revision": (str, type(None)),
    "fingerprint": (str, type(None)),
    "strategy": (dict,),
    "calibration": (dict,),
    "rest": (list,),
    "format_version": (int,),
    "library_version": (str,),
}


def save(mask: NeuronMask, folder: Path) -> Path:
    """Write the three files; the config comes last, so that a folder with a config is complete."""
    from safetensors.numpy import save as to_bytes

    from neurofreeze.report.templates import render

    tensors: dict[str, Any] = pack(mask)
    if mask.scores is not None:
        tensors |= {f"{name}.scores": np.array(scores) for name, scores in mask.scores.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, to_bytes(tensors))
    write_atomically(folder / CARD, render("mask_card.md", mask=mask).encode())
    write_atomically(folder / CONFIG, (json.dumps(asdict(mask.config), indent=2) + "\n").encode())
    return folder


def load(source: str | Path, revision: str | None) -> NeuronMask:
    """Read a mask from a folder or a hub repository."""
    from neurofreeze.mask import NeuronMask

    folder = _folder(source, revision)
    config = _config(folder / CONFIG)
    bits, scores = _tensors(folder / WEIGHTS, config)
    return NeuronMask(bits, config, scores)


def push(mask: NeuronMask, repo_id: str, private: bool, revision: str | None) -> str:
    """Upload the three files in one commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(mask, Path(folder))
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message="Add neuron mask"
        )
    return str(commit.commit_url)


def _folder(source: str | Path, revision: str | None) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if str(source).count("/") > 1 or str(source).startswith((".", "/", "~")):
        raise MaskError(
            f"no folder {source}; expected one with {CONFIG}, such as selection/safety of a run folder, or a hub "
            "repository id"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[WEIGHTS, CONFIG, CARD]))
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        raise MaskError(
            f"no mask at {source}: neither a folder nor a reachable hub repository ({' '.join(reason)}); expected a "
            f"folder with {CONFIG}, such as selection/safety of a run folder, or a hub repository id"
        ) from error


def _config(path: Path) -> MaskConfig:
    return parse_config(read_json_file(path, "save_pretrained", MaskError), str(path))


def parse_config(raw: Any, where: str) -> MaskConfig:
    """The config that a JSON value found at `where` holds.

    Raises:
        MaskError: naming the field that is missing, unknown or of the wrong type.
    """
    from neurofreeze.mask import FORMAT_VERSION, MaskConfig

    if not isinstance(raw, dict):
        raise MaskError(f"{where} holds a {type(raw).__name__}, expected an object")
    if raw.get("format_version") != FORMAT_VERSION:
        raise MaskError(
            f"field 'format_version': found {raw.get('format_version')!r}, expected {FORMAT_VERSION}; "
            "make the mask again, or use the library version that wrote it"
        )
    required = {"model_type", "granularity", "layout", "neurons"}
    for name in [*sorted(required - set(raw)), *sorted(set(raw) - set(_TYPES))]:
        raise MaskError(f"field '{name}': {'unknown' if name in raw else 'missing'}, in {where}")
    for name, value in raw.items():
        if not isinstance(value, _TYPES[name]):
            wanted = " or ".join(kind.__name__ for kind in _TYPES[name])
            raise MaskError(f"field '{name}': found {type(value).__name__}, expected {wanted}, in {where}")
    if raw["granularity"] not in ("head", "channel"):
        raise MaskError(f"field 'granularity': found {raw['granularity']!r}, expected 'head' or 'channel', in {where}")
    if not raw["neurons"]:
        raise MaskError(f"field 'neurons': names no site, in {where}")
    for site, neurons in raw["neurons"].items():
        if type(neurons) is not int or neurons < 1:
            raise MaskError(f"field 'neurons.{site}': found {neurons!r}, expected a positive whole number, in {where}")
    assert set(_TYPES) == {field.name for field in fields(MaskConfig)}
    return MaskConfig(**{**raw, "rest": tuple(raw.get("rest", ()))})


def _tensors(path: Path, config: MaskConfig) -> tuple[dict[str, Any], dict[str, Any] | None]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError) as error:
        # The last two are what NumPy answers to a dtype it does not have, such as bfloat16.
        raise MaskError(f"{path} is not a readable safetensors file: {error}") from error
    packed = {name: t for name, t in tensors.items() if not name.endswith(".scores")}
    scores = {name.removesuffix(".scores"): t for name, t in tensors.items() if name.endswith(".scores")}
    if set(packed) != set(config.neurons):
        odd = sorted(set(packed) ^ set(config.neurons))
        raise MaskError(f"field 'neurons': sites {odd[:3]} are in only one of {CONFIG} and {WEIGHTS}")
    bits = {name: unpack(name, packed[name], neurons) for name, neurons in config.neurons.items()}
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise MaskError(f"field 'scores.{name}': holds NaN or infinite values")
    return bits, scores or None


def pack(mask: NeuronMask) -> dict[str, Any]:
    """Site -> uint8 [ceil(neurons / 8)]."""
    return {name: np.packbits(bits, bitorder="little") for name, bits in mask.bits.items()}


def unpack(name: str, packed: Any, neurons: int) -> Any:
    """One site's bits, bool [neurons], from uint8 [ceil(neurons / 8)].

    Raises:
        MaskError: if it has another type or shape, or bits beyond the last neuron.
    """
    expected = -(-neurons // 8)
    if packed.dtype != np.uint8 or packed.shape != (expected,):
        raise MaskError(
            f"field 'bits.{name}': found {packed.dtype} of shape {packed.shape}, expected uint8 of shape ({expected},)"
        )
    bits = np.unpackbits(packed, bitorder="little").astype(bool)
    if bits[neurons:].any():
        raise MaskError(f"field 'bits.{name}': bits are set beyond neuron {neurons - 1}")
    return bits[:neurons]
