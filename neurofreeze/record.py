"""What a checkpoint carries so that freezing can go on from it: the mask, and the fingerprint of the frozen bits.

It is one JSON text, so that every checkpoint format can hold it: DeepSpeed's client state, a torch distributed
checkpoint, accelerate's custom objects, the trainer's state.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from neurofreeze._version import __version__
from neurofreeze.errors import FreezeError
from neurofreeze.mask import NeuronMask
from neurofreeze.mask_file import pack, parse_config, unpack

KEY = "neurofreeze"
_VERSION = 1


@dataclass(frozen=True)
class FreezeRecord:
    """The neurons that are frozen, and the fingerprint of their bits (16 hexadecimal digits)."""

    mask: NeuronMask
    fingerprint: str

    def state_dict(self) -> dict[str, Any]:
        """The record under its key, to be put into a checkpoint's state."""
        content = {
            "version": _VERSION,
            "library_version": __version__,
            "fingerprint": self.fingerprint,
            "config": asdict(self.mask.config),
            "bits": {name: base64.b64encode(packed).decode() for name, packed in pack(self.mask).items()},
        }
        return {KEY: json.dumps(content)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> FreezeRecord:
        """The record in a checkpoint's state.

        Raises:
            FreezeError: if there is none, or it is of another version or damaged.
            MaskError: if its mask is malformed, naming the field.
        """
        if KEY not in state:
            raise FreezeError(
                "the checkpoint carries no mask: it was saved without freezer.state_dict(), or nothing was frozen; "
                "start from the base model, or from a checkpoint that was saved with it"
            )
        try:
            content = json.loads(state[KEY])
            version, fingerprint, bits = content["version"], content["fingerprint"], content["bits"]
            packed = {name: base64.b64decode(text, validate=True) for name, text in bits.items()}
        except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as error:
            raise FreezeError(
                f"the checkpoint's record of what was frozen is damaged ({error!r}); use another one"
            ) from error
        if version != _VERSION:
            raise FreezeError(
                f"the checkpoint's record of what was frozen has version {version!r}, expected {_VERSION}; resume "
                f"with the library version that wrote it, {content.get('library_version')!r}"
            )
        config = parse_config(content.get("config"), "the checkpoint's mask")
        if set(packed) != set(config.neurons):
            raise FreezeError("the checkpoint's record of what was frozen is damaged: bits and config name other sites")
        chosen = {
            name: unpack(name, np.frombuffer(packed[name], np.uint8), neurons)
            for name, neurons in config.neurons.items()
        }
        return cls(NeuronMask(chosen, config), str(fingerprint))
