"""What may train in place of a model's weights: some of their lines, update vectors, LoRA; folded in at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from neurofreeze.mask import NeuronMask
from neurofreeze.merging import merge_adapters
from neurofreeze.methods.nest.choice import Updates
from neurofreeze.methods.nest.updates import attach, fold
from neurofreeze.selective_layers import merge, selective


class Adaptation(Protocol):
    """Puts parameters into a model, and makes it an ordinary one with what they learned."""

    @property
    def identity(self) -> str:
        """All that the parameters depend on before training."""
        ...

    def attach(self, model: Any) -> Any:
        """The model with them."""
        ...

    def merge(self, model: Any) -> Any:
        """The ordinary model."""
        ...


@dataclass(frozen=True)
class UpdateVectors:
    """NeST's vectors, which start at 0."""

    updates: Updates

    @property
    def identity(self) -> str:
        """The digest of rows and vectors."""
        return f"update vectors {self.updates.digest}"

    def attach(self, model: Any) -> Any:
        """The model with update vectors."""
        return attach(model, self.updates)

    def merge(self, model: Any) -> Any:
        """The model with the vectors folded in."""
        return fold(model)


@dataclass(frozen=True)
class SelectiveLayers:
    """The lines of the weights that a mask does not freeze, and all that belongs to no neuron."""

    mask: NeuronMask

    @property
    def identity(self) -> str:
        """The mask's digest."""
        return f"selective layers {self.mask.digest}"

    def attach(self, model: Any) -> Any:
        """The model with selective layers."""
        return selective(model, self.mask, train="unmasked")

    def merge(self, model: Any) -> Any:
        """The ordinary model."""
        return merge(model)


@dataclass(frozen=True)
class LoRA:
    """PEFT's LoRA on every linear layer but the output embeddings.

    Args:
        rank: of the adapters.
        seed: of their starting values.
        alpha: the product is scaled by alpha / rank.
        mask: neurons that are frozen, which merging leaves bit for bit; None for none.
    """

    rank: int = 8
    seed: int = 0
    alpha: float = 16
    mask: NeuronMask | None = field(default=None, repr=False)

    @property
    def identity(self) -> str:
        """Its fields; the mask is a fine-tune's own."""
        return repr(self)

    def attach(self, model: Any) -> Any:
        """The model with adapters."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(self.seed)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, config)

    def merge(self, model: Any) -> Any:
        """The model with the adapters merged."""
        return model.merge_and_unload() if self.mask is None else merge_adapters(model, self.mask)
