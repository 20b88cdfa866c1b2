"""SteeringVector: a direction at one or several layers, and adding it to a model's residual stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from neurofreeze._version import __version__
from neurofreeze.errors import ConfigError, ModelError
from neurofreeze.guard.steering.blocks import shifted

Unit = Literal["norm", "raw"]
UNITS = ("norm", "raw")
FORMAT_VERSION = 1


@dataclass(frozen=True)
class VectorConfig:
    """Where a vector came from; stored as `steering_vector_config.json`.

    Attributes:
        model_type: as in the model's config; None where that is not known.
        hidden_norms: layer -> mean L2 norm of what the layer gives, at the tokens that the vector was read from.
        recipe: its name and settings.
        calibration: role -> digest of the prompts.
    """

    model_type: str | None
    hidden_norms: dict[int, float] = field(default_factory=dict)
    model: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    library_version: str = __version__


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """Directions by layer.

    Attributes:
        directions: layer, counted from 0 -> float32 [hidden]; see `neurofreeze.guard.steering.blocks` for what a layer
            is.
        config: where they came from.

    Raises:
        ModelError: if there are none, or they are not finite vectors of one length.
    """

    directions: Mapping[int, torch.Tensor]
    config: VectorConfig

    def __post_init__(self) -> None:
        shapes = {tuple(direction.shape) for direction in self.directions.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ModelError(f"found directions of the shapes {sorted(shapes)}; expected one vector length for all")
        for layer, direction in self.directions.items():
            if layer < 0 or not torch.isfinite(direction).all():
                raise ModelError(f"the direction of layer {layer} is not a finite vector of a layer counted from 0")

    @property
    def hidden(self) -> int:
        """How many entries each direction has."""
        return len(next(iter(self.directions.values())))

    def at(self, layer: int) -> SteeringVector:
        """The vector with the direction of one layer only.

        Raises:
            ConfigError: if it has none there.
        """
        if layer not in self.directions:
            found = ", ".join(map(str, sorted(self.directions)))
            raise ConfigError(f"the steering vector has no direction at layer {layer}; expected one of {found}")
        return SteeringVector({layer: self.directions[layer]}, self.config)

    @property
    def digest(self) -> str:
        """SHA-256 over layers and directions."""
        h = hashlib.sha256()
        for layer, direction in sorted(self.directions.items()):
            h.update(f"{layer} ".encode() + direction.float().contiguous().numpy().tobytes())
        return h.hexdigest()

    def with_norms(self, norms: Mapping[int, float]) -> SteeringVector:
        """The vector with the mean hidden norms of some layers, those it has included."""
        return replace(self, config=replace(self.config, hidden_norms={**norms, **self.config.hidden_norms}))

    def check(self, config: Any) -> None:
        """Raise ModelError, naming what differs, unless the vector can be added to a model with this config."""
        text = config.get_text_config()
        known = self.config.model_type
        if known is not None and known not in (text.model_type, config.model_type):
            raise ModelError(f"the steering vector is for {known} models, this one is {text.model_type}")
        if self.hidden != text.hidden_size:
            raise ModelError(f"the steering vector has {self.hidden} entries, the model {text.hidden_size} channels")
        if max(self.directions) >= (count := text.num_hidden_layers):
            raise ModelError(f"the steering vector is for layer {max(self.directions)}, the model has {count} layers")

    def scaled(self, strength: float, unit: Unit = "norm") -> dict[int, torch.Tensor]:
        """Layer -> what is added there, float32 [hidden].

        Args:
            strength: alpha.
            unit: "raw": alpha * v. "norm": alpha * n * v / ||v|| with n the layer's mean hidden norm, so that strengths
                mean the same for vectors of any length and layers of any scale.

        Raises:
            ConfigError: if the unit is "norm" and a layer's norm is not known, or its direction is zero.
        """
        if unit == "raw":
            return {layer: strength * direction for layer, direction in self.directions.items()}
        found = {}
        for layer, direction in self.directions.items():
            norm = self.config.hidden_norms.get(layer)
            if norm is None or not direction.any():
                what = "no hidden norm" if norm is None else "no length"
                raise ConfigError(f"the steering vector has {what} at layer {layer}; use unit=raw, or measure the norm")
            found[layer] = strength * norm * direction / direction.norm()
        return found

    @contextmanager
    def applied(self, model: Any, strength: float, unit: Unit = "norm") -> Iterator[Any]:
        """Within the block, `model`, which is yielded, adds the vector at every position: h + alpha v.

        Strength 0 leaves every bit as it is. After the block nothing of it is left on the model.

        Raises:
            ModelError, ConfigError: as `check` and `scaled`.
        """
        self.check(model.config)
        with shifted(model, self.scaled(strength, unit)):
            yield model

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write steering_vector.safetensors and steering_vector_config.json into `folder`, which is returned."""
        from neurofreeze.guard.steering import storage

        return storage.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> SteeringVector:
        """Load a vector: a folder that `save_pretrained` wrote, repeng's .gguf, or a .pt of steering-vectors.

        Raises:
            ModelError: if it is none of these, is malformed, or would need unpickling objects.
        """
        from neurofreeze.guard.steering import foreign, storage

        path = Path(source)
        if path.suffix in foreign.READERS:
            return foreign.READERS[path.suffix](path)
        return storage.load(path)
