"""The reference's format on disk: the mask's own files, arrays in safetensors, the rest in JSON. Nothing is pickled.

`reference.safetensors` holds mean, scale, edges, shares, precision and held, all float64; shapes as in `Reference`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from neurofreeze._version import __version__
from neurofreeze.errors import DataError, MaskError
from neurofreeze.files import write_atomically
from neurofreeze.guard.monitor.reference import BINS, Reference
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.verification import loaded_fingerprint

ARRAYS = "reference.safetensors"
CONFIG = "reference.json"
FORMAT_VERSION = 2


def save(reference: Reference, folder: Path) -> Path:
    """Write the files; the config comes last, so that a folder with one is complete."""
    from safetensors.numpy import save as to_bytes

    reference.mask.save_pretrained(folder)
    arrays = {name: np.ascontiguousarray(getattr(reference, name)) for name in _shapes(0, 0)}
    content = to_bytes(arrays)
    write_atomically(folder / ARRAYS, content)
    config = {
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "sha256": hashlib.sha256(content).hexdigest(),  # of reference.safetensors
        "pooling": reference.pooling,
        "mask": reference.mask.digest,
        "made_of": reference.made_of,
    }
    write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return folder


def load(folder: Path) -> Reference:
    """Read what `save` wrote.

    Raises:
        DataError: if a file is missing or malformed, naming the field.
        MaskError: if the mask is.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        content = (folder / ARRAYS).read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder} holds no reference ({error}); make one with `neurofreeze monitor`") from error
    mask = NeuronMask.from_pretrained(folder)
    _check_config(config, mask)
    arrays = _arrays(folder / ARRAYS, content, config["sha256"])
    held = arrays["held"].shape[0] if arrays.get("held") is not None and arrays["held"].ndim == 2 else 0
    for name, shape in _shapes(mask.count, held).items():
        found = arrays.get(name)
        if found is None or found.dtype != np.float64 or found.shape != shape or not np.isfinite(found).all():
            what = "nothing" if found is None else f"{found.dtype} of shape {found.shape}"
            raise DataError(f"field '{name}': found {what}, expected finite float64 of shape {shape}; make it again")
    if not (held and (arrays["scale"] > 0).all()):
        raise DataError(f"field '{'scale' if held else 'held'}': found values that no reference has; make it again")
    return Reference(
        mask, config["pooling"], **{name: arrays[name] for name in _shapes(0, 0)}, made_of=config["made_of"]
    )


def check(reference: Reference, model: Any, other_weights: bool) -> None:
    """Raise MaskError unless the reference is for this model, and for its weights unless others are meant."""
    reference.mask.check(NeuronMap.of(model, reference.mask.config.granularity))  # type: ignore[arg-type]
    expected = reference.mask.config.fingerprint
    if other_weights or expected is None:
        return
    found = loaded_fingerprint(model, reference.mask)
    if found != expected:
        raise MaskError(
            f"field 'fingerprint': the reference was made with weights {expected} of the watched neurons, the model "
            f"has {found}; make a reference for this model, or pass other_weights=True if its drift is to be seen"
        )


def _arrays(path: Path, content: bytes, sha256: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{path} is not the file that {CONFIG} was written with; it was changed or cut: make the reference again"
        )
    try:
        return from_bytes(content)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a readable safetensors file: {error}") from error


def _check_config(config: Any, mask: NeuronMask) -> None:
    if not isinstance(config, dict) or config.get("format_version") != FORMAT_VERSION:
        found = config.get("format_version") if isinstance(config, dict) else type(config).__name__
        raise DataError(f"field 'format_version': found {found!r}, expected {FORMAT_VERSION}; make the reference again")
    if config.get("pooling") not in ("mean", "last"):
        raise DataError(f"field 'pooling': found {config.get('pooling')!r}, expected 'mean' or 'last'")
    made_of = config.get("made_of")
    if not isinstance(made_of, dict) or not all(type(made_of.get(name)) is int for name in ("prompts", "held")):
        raise DataError("field 'made_of': found no object with numbers of prompts; make the reference again")
    if not isinstance(config.get("sha256"), str):
        raise DataError(f"field 'sha256': found no digest of {ARRAYS}; make the reference again")
    if config.get("mask") != mask.digest:
        raise DataError("field 'mask': the mask beside the reference is another one; make the reference again")


def _shapes(neurons: int, held: int) -> dict[str, tuple[int, ...]]:
    return {
        "mean": (neurons,),
        "scale": (neurons,),
        "edges": (neurons, BINS - 1),
        "shares": (neurons, BINS),
        "precision": (neurons, neurons),
        "held": (held, neurons),
    }
