"""Reference: how the watched neurons behave on benign prompts, neuron by neuron and jointly."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neurofreeze.data.batches import template_record
from neurofreeze.errors import DataError
from neurofreeze.guard.monitor.pooling import Pooling
from neurofreeze.mask import NeuronMask

Array = npt.NDArray[np.float64]
FEWEST = 20  # prompts of each half
BINS = 10
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of one half of the calibration prompts, and the activations of the other half.

    Attributes:
        mask: the k watched neurons, in the order of sites and then neurons; its fingerprint is of their weights.
        pooling: of a neuron's activations over the tokens of a prompt.
        mean: float64 [k].
        scale: standard deviation, float64 [k]; a neuron that never varied has a tiny one, so that it is an alarm if it
            does.
        edges: inner edges of the quantile bins, float64 [k, bins - 1].
        shares: of the prompts in each bin, float64 [k, bins].
        precision: inverse of the covariance of standardised activations, float64 [k, k], shrunk (Ledoit and Wolf 2004).
        held: standardised activations of the held-out prompts, float64 [prompts, k]; thresholds come from them.
        made_of: where it comes from: numbers of prompts, their digest, the chat template, the shrinkage.
    """

    mask: NeuronMask
    pooling: Pooling
    mean: Array
    scale: Array
    edges: Array
    shares: Array
    precision: Array
    held: Array
    made_of: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(cls, observations: Array, mask: NeuronMask, pooling: Pooling = "mean", *, seed: int = 0) -> Reference:
        """The reference of so many prompts' activations, float64 [prompts, k]; a random half is held out.

        Raises:
            DataError: if there are fewer than 40 prompts, or an activation is not finite.
        """
        if len(observations) < 2 * FEWEST:
            raise DataError(f"found {len(observations)} calibration prompts, expected at least {2 * FEWEST}; add some")
        if not np.isfinite(observations).all():
            raise DataError(
                "an activation is not finite on the calibration prompts; does the model give finite outputs?"
            )
        from sklearn.covariance import LedoitWolf

        order = np.random.default_rng(seed).permutation(len(observations))
        own, held = np.split(observations[order], [-(-len(order) // 2)])
        mean, deviation = own.mean(0), own.std(0, ddof=1)
        scale = np.maximum(deviation, 1e-6 * np.maximum(np.abs(mean), _TINY))
        edges = np.quantile(own, np.arange(1, BINS) / BINS, axis=0).T
        bins = np.stack([np.searchsorted(e, values) for e, values in zip(edges, own.T, strict=True)])
        shares = np.stack([np.bincount(found, minlength=BINS) for found in bins]) / len(own)
        covariance = LedoitWolf(assume_centered=True).fit((own - mean) / scale)
        return cls(
            mask,
            pooling,
            mean,
            scale,
            edges,
            shares,
            covariance.precision_,
            (held - mean) / scale,
            {"prompts": len(own), "held": len(held), "shrinkage": float(covariance.shrinkage_), "seed": seed},
        )

    @property
    def neurons(self) -> int:
        """How many are watched."""
        return len(self.mean)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the watched neurons, "layers.3.mlp/17", in order."""
        return tuple(f"{name}/{number}" for name, bits in self.mask.bits.items() for number in np.flatnonzero(bits))

    @cached_property
    def held_distances(self) -> Array:
        """Squared Mahalanobis distances of the held-out prompts, float64 [prompts]."""
        return self.distances(self.held)

    def standardized(self, observations: Array) -> Array:
        """In standard deviations from the mean, float64 [prompts, k]."""
        return (observations - self.mean) / self.scale

    def distances(self, standardized: Array) -> Array:
        """Squared Mahalanobis distances z' P z, float64 [prompts]; above 0, so that they have logarithms."""
        found = np.einsum("ni,ij,nj->n", standardized, self.precision, standardized, optimize=True)
        return np.maximum(found, _TINY)

    def require_template(self, tokenizer: Any) -> None:
        """Raise DataError if the tokenizer puts conversations otherwise than the reference's prompts were put."""
        expected, found = self.made_of.get("chat_template"), template_record(tokenizer)
        if expected not in (None, found):
            raise DataError(
                f"the reference was made with the chat template {expected}, the tokenizer has {found}; make another, "
                "or use that template"
            )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the mask's files, reference.safetensors and reference.json into `folder`."""
        from neurofreeze.guard.monitor import reference_file

        return reference_file.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, model: Any = None, other_weights: bool = False) -> Reference:
        """Load a reference, checking everything.

        Args:
            folder: written by `save_pretrained`.
            model: the model to be watched.
            other_weights: whether the watched neurons' weights may differ from those that the reference was made with,
                as when its drift in training is what is to be seen.

        Raises:
            DataError: if a file is missing or malformed, naming the field.
            MaskError: if the reference is for another model, or other weights.
        """
        from neurofreeze.guard.monitor import reference_file

        reference = reference_file.load(Path(folder))
        if model is not None:
            reference_file.check(reference, model, other_weights)
        return reference
