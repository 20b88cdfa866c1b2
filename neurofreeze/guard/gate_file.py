"""The gate's format on disk: what was fitted as safetensors, all else as JSON. Nothing is pickled or executed."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofreeze._version import __version__
from neurofreeze.data.batches import template_record
from neurofreeze.errors import DataError, GuardError, NeuroFreezeWarning
from neurofreeze.files import read_json_file, write_atomically
from neurofreeze.guard.calibration import Calibration
from neurofreeze.guard.events import OnEvent
from neurofreeze.guard.identity import identity, require_same
from neurofreeze.guard.reactions import REACTIONS
from neurofreeze.guard.triggers import TRIGGERS

if TYPE_CHECKING:
    from neurofreeze.guard.gate import Gate

FORMAT_VERSION = 1
WEIGHTS = "gate.safetensors"
CONFIG = "gate.json"
_FIELDS = {
    "format_version": int,
    "library_version": str,
    "sha256": str,  # of gate.safetensors
    "trigger": dict,
    "reaction": dict,
    "steps": (int, type(None)),
    "threshold": (float, int, type(None)),
    "calibration": (dict, type(None)),
    "model": dict,
    "expert": (dict, type(None)),
}


def save(gate: Gate, folder: Path) -> Path:
    """Write the two files; the JSON comes last, so that a folder with one is complete."""
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in gate.trigger.tensors().items()}
    weights = to_bytes(tensors)
    config = {
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "trigger": {"name": gate.trigger.name, "settings": gate.trigger.settings()},
        "reaction": {"name": gate.reaction.name, "settings": dict(vars(gate.reaction))},
        "steps": gate.steps,
        "threshold": gate.threshold,
        "calibration": None if gate.calibration is None else gate.calibration.as_json(),
        "model": {**identity(gate.model), "chat_template": _template(gate.tokenizer)},
        "expert": None if gate.expert is None else identity(gate.expert),
    }
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / CONFIG, (json.dumps(config, indent=2, allow_nan=False) + "\n").encode())
    return folder


def load(folder: Path, model: Any, tokenizer: Any, expert: Any, other_weights: bool, on_event: OnEvent | None) -> Gate:
    """Read a gate; everything is checked before an expert is loaded."""
    from neurofreeze.guard.gate import Gate

    config = read_config(folder)
    found = identity(model)
    require_same(found, config["model"], "model", other_weights)
    _require_template(config["model"].get("chat_template"), tokenizer)
    if found["fingerprint"] != config["model"].get("fingerprint"):
        warnings.warn(
            f"{folder} was calibrated on other weights than this model's; its false-positive rate is not known here",
            NeuroFreezeWarning,
            stacklevel=3,
        )
    tensors = _tensors(folder / WEIGHTS, config["sha256"])
    trigger_class = _named(config["trigger"], TRIGGERS, "trigger")
    reaction_class = _named(config["reaction"], REACTIONS, "reaction")
    try:
        trigger = trigger_class.load(config["trigger"]["settings"], tensors)
        reaction = reaction_class(**config["reaction"]["settings"])
    except TypeError as error:
        raise GuardError(f"{folder / CONFIG} has malformed settings: {error}; make the gate again") from error
    # An expert that this gate needs not may be there for the next one of a chain.
    expert = None if config["expert"] is None else _expert(config["expert"], expert)
    gate = Gate(model, tokenizer, trigger, reaction, steps=config["steps"], expert=expert, on_event=on_event)
    if config["threshold"] is not None:
        gate.threshold = config["threshold"]
    if config["calibration"] is not None:
        gate.calibration = Calibration.from_json(config["calibration"])
        if gate.calibration.threshold != gate.threshold:
            raise GuardError(
                f"{folder / CONFIG} has threshold {gate.threshold} and a calibration for {gate.calibration.threshold}; "
                "one of them was edited: set gate.threshold in Python, or calibrate again"
            )
    return gate


def read_config(folder: Path) -> dict[str, Any]:
    """The checked JSON of a gate's folder.

    Raises:
        GuardError: if it is missing or malformed, naming the field.
    """
    path = folder / CONFIG
    found = read_json_file(path, "Gate.save_pretrained", GuardError)
    if not isinstance(found, dict):
        raise GuardError(f"{path} holds a {type(found).__name__}; expected an object")
    if found.get("format_version") != FORMAT_VERSION:
        raise GuardError(
            f"{path} has format_version {found.get('format_version')!r}, expected {FORMAT_VERSION}; make the gate "
            "again, or use the library version that wrote it"
        )
    for name in sorted(set(found) ^ set(_FIELDS)):
        raise GuardError(f"field '{name}' is {'unknown' if name in found else 'missing'} in {path}")
    for name, kinds in _FIELDS.items():
        if not isinstance(found[name], kinds) or isinstance(found[name], bool):  # type: ignore[arg-type]
            raise GuardError(f"field '{name}' in {path} is a {type(found[name]).__name__}")
    # Python reads NaN and Infinity as JSON, and nothing reaches either: the gate would let everything through.
    if found["threshold"] is not None and not abs(found["threshold"]) <= sys.float_info.max:
        raise GuardError(f"field 'threshold' in {path} is {found['threshold']}; expected a finite number or null")
    return found


def _template(tokenizer: Any) -> dict[str, Any] | None:
    """Which chat template prompts were put through; None of a tokenizer without one."""
    try:
        return template_record(tokenizer)
    except DataError:
        return None


def _require_template(expected: Any, tokenizer: Any) -> None:
    found = _template(tokenizer)
    if expected not in (None, found):
        raise GuardError(
            f"the gate was made with the chat template {expected}, the tokenizer has {found}: its threshold is of "
            "other tokens. Use that template, or calibrate a gate for this one"
        )


def _tensors(path: Path, sha256: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        content = path.read_bytes()
    except OSError as error:
        raise GuardError(f"{path} cannot be read ({error.strerror}); the gate is incomplete") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise GuardError(f"{path} is not the file that {CONFIG} was written with; it was changed or cut: get it again")
    try:
        return dict(from_bytes(content))
    except (SafetensorError, KeyError, TypeError) as error:
        raise GuardError(f"{path} is not a readable safetensors file: {error}") from error


def _named(found: Mapping[str, Any], known: Mapping[str, Any], what: str) -> Any:
    if set(found) != {"name", "settings"} or not isinstance(found["settings"], dict):
        raise GuardError(f"field '{what}' has {sorted(found)}; expected a name and settings")
    if found["name"] not in [*known]:
        raise GuardError(f"field '{what}': found {found['name']!r}, expected one of {', '.join(known)}")
    return known[found["name"]]


def _expert(expected: Mapping[str, Any], given: Any) -> Any:
    """The expert that was given, or the one of the name in the folder; the same weights either way."""
    if given is None:
        from neurofreeze.guard.loading import load_expert

        if not expected.get("name"):
            raise GuardError("the gate needs an expert, and its folder has no name for it; give expert=")
        given = load_expert(expected["name"])
    require_same(identity(given), expected, "expert")
    return given
