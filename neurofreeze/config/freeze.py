"""The settings of what is frozen besides the neurons that are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

from neurofreeze.config.checks import check
from neurofreeze.rest import KINDS


@dataclass
class RestConfig:
    """Parameters that belong to no neuron, kind by kind: train or freeze."""

    embeddings: str = "train"  # of tokens and of positions
    norms: str = "train"
    lm_head: str = "train"  # where it is tied to the embeddings, both must be the same
    other: str = "train"  # routers, biases of outputs, compressed attention, ...

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check(value in ("train", "freeze"), f"freeze.rest.{name}", value, "train or freeze")


@dataclass
class FreezeConfig:
    """What arms that freeze neurons freeze besides them."""

    rest: RestConfig = field(default_factory=RestConfig)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the rest that are frozen, of neurofreeze.rest.KINDS."""
        return tuple(kind for kind in KINDS if getattr(self.rest, kind) == "freeze")
