"""How the ranks of one training run share the model: conf/backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from neurofreeze.config.checks import check

BACKENDS = ("plain", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload")


@dataclass
class BackendConfig:
    """One engine of training, and what is handed to the library that runs it."""

    name: str = "plain"  # plain: one process
    fsdp: dict[str, Any] = field(default_factory=dict)  # fsdp2: transformers' fsdp_config
    deepspeed: dict[str, Any] = field(default_factory=dict)  # zero*: DeepSpeed's configuration

    def __post_init__(self) -> None:
        check(self.name in BACKENDS, "backend.name", self.name, f"one of {', '.join(BACKENDS)}")
        fsdp, zero = self.name == "fsdp2", self.name.startswith("zero")
        check(fsdp or not self.fsdp, "backend.fsdp", self.fsdp, f"nothing, since backend is {self.name}")
        check(zero or not self.deepspeed, "backend.deepspeed", self.deepspeed, f"nothing, since backend is {self.name}")
        stage = self.deepspeed.get("zero_optimization", {}).get("stage")
        wanted = int(self.name[4]) if zero else None
        check(stage == wanted, "backend.deepspeed.zero_optimization.stage", stage, f"{wanted}, as the name says")
