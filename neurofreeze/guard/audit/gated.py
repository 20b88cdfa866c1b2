"""A gate in the place of a model: its answers are the gate's, everything else is the model's own.

A gate acts in generation and moves no distribution, so that margins, losses and divergences come out unchanged: what it
does shows in refusals and over-refusals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurofreeze.data.examples import Example
from neurofreeze.errors import GuardError
from neurofreeze.guard.gate import Gate
from neurofreeze.guard.gate_file import CONFIG
from neurofreeze.models.load import load_tokenizer


class Gated:
    """A model that generates through a gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def generate(self, **arguments: Any) -> Any:
        """The gate's."""
        return self._gate.generate(**arguments)

    def __call__(self, **arguments: Any) -> Any:
        """The model's own forward pass."""
        return self._gate.model(**arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gate.model, name)


def load_gated(folder: Path, base: Path, model: Any, unseen: Sequence[Example]) -> Gated:
    """The gate in `folder` around `model`.

    Args:
        folder: written by `Gate.save_pretrained`.
        base: the model's own folder, for its tokenizer.
        model: the original.
        unseen: prompts that it is measured on.

    Raises:
        GuardError: if there is no gate, or it is for another model.
        DataError: if it was fitted or calibrated on one of the prompts.
    """
    gate = Gate.from_pretrained(folder, model=model, tokenizer=load_tokenizer(base))
    gate.require_unseen(unseen)
    return Gated(gate)


def gate_digest(folder: Path) -> str:
    """SHA-256 of gate.json, which holds that of the gate's tensors.

    Raises:
        GuardError: if there is none.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise GuardError(f"no {CONFIG} in {folder}; expected the folder of a gate, which Gate.save_pretrained writes")
    return hashlib.sha256(path.read_bytes()).hexdigest()
