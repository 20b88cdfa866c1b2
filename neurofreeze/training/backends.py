"""Backends: what the trainer must be given to share a model among ranks, and proof that it does.

Libraries fall back quietly: without a GPU accelerate runs DDP in the place of FSDP, and nothing in the place of
DeepSpeed. So what runs is looked at before the first step.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from neurofreeze.config.backend import BackendConfig
from neurofreeze.distributed import gather, rank, world_size
from neurofreeze.errors import ConfigError, FreezeError
from neurofreeze.models.load import load_config, load_model

# What accelerate leaves in the environment, for the models that are loaded next.
_VARIABLES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "FSDP_CPU_RAM_EFFICIENT_LOADING")


@dataclass(frozen=True)
class Backend:
    """One of conf/backend, in use by the trainer of this process.

    Args:
        config: its settings.
        bf16: whether it computes in bfloat16: autocast, but under ZeRO bfloat16 weights with float32 masters.
    """

    config: BackendConfig
    bf16: bool = False

    @property
    def shards(self) -> bool:
        """Whether ranks hold parts of the parameters while they train."""
        return self.config.name == "fsdp2" or self.config.name.startswith("zero3")

    @property
    def zero(self) -> bool:
        """Whether DeepSpeed runs it."""
        return self.config.name.startswith("zero")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block the trainer's libraries know the backend; afterwards models are ordinary again."""
        before = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
        try:
            yield
        finally:
            # Else one rank that loads a model by itself would wait for the others to take their part of it.
            unset_hf_deepspeed_config()
            for name in _VARIABLES:
                os.environ.pop(name, None)
            os.environ |= before

    def options(self) -> dict[str, Any]:
        """What transformers' TrainingArguments must be given. Within `in_use`."""
        found: dict[str, Any] = {"bf16": self.bf16, "fp16": False, "use_cpu": not torch.cuda.is_available()}
        if self.zero:
            from deepspeed import comm

            # Else zero.Init, which comes first under ZeRO-3, takes this rank for the only one.
            comm.init_distributed("nccl" if torch.cuda.is_available() else "gloo", auto_mpi_discovery=False)
            # Copied: the trainer puts its own values in.
            found["deepspeed"] = copy.deepcopy(self.config.deepspeed)
        elif self.config.name == "fsdp2":
            found |= {"fsdp": True, "fsdp_config": copy.deepcopy(self.config.fsdp)}
            # As `accelerate launch` does, so that the model that is loaded next is read by one rank of a node only.
            os.environ["ACCELERATE_USE_FSDP"] = "true"
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = str(self.config.fsdp.get("cpu_ram_efficient_loading", False))
            if not torch.cuda.is_available():
                found["accelerator_config"] = {"use_configured_state": True}
                _let_fsdp_run_without_gpu()
        return found

    def load(self, base: Path) -> Any:
        """The model to train, from a checkpoint folder. Within `in_use`, once the trainer's arguments exist.

        Raises:
            ConfigError: if the backend would round the checkpoint's weights, frozen ones too.
        """
        if not (self.zero and self.bf16):
            return load_model(base, torch.float32, place=not self.shards)
        if load_config(base).dtype != torch.bfloat16:
            raise ConfigError(
                f"backend={self.config.name} holds weights in bfloat16, but those of {base} are "
                f"{load_config(base).dtype}, so that frozen ones would be rounded; set training.bf16=false"
            )
        return load_model(base, torch.bfloat16, place=not self.shards)

    def gather(self, trainer: Any) -> dict[str, torch.Tensor] | None:
        """The whole weights on rank 0, if ranks hold parts of them; else None. Collective."""
        if not self.shards:
            return None
        state: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return state if rank() == 0 else None

    def require(self, trainer: Any) -> None:
        """Look at what `trainer` has wrapped its model in.

        Raises:
            FreezeError: if it is not this backend, or ranks are not all there.
        """
        found = _engine(trainer)
        if found != self.config.name or trainer.accelerator.num_processes != world_size():
            raise FreezeError(
                f"backend={self.config.name} was asked for on {world_size()} ranks, but the trainer runs {found} on "
                f"{trainer.accelerator.num_processes}; nothing has been trained"
            )


ONE_PROCESS = Backend(BackendConfig())


def computes_in_bf16(wanted: str) -> bool:
    """What training.bf16 comes to, "auto" on the machines of all ranks. Collective."""
    if wanted != "auto":
        return wanted == "true"
    # Without the instructions bfloat16 is emulated and slower than float32.
    if torch.cuda.is_available():
        return all(gather(torch.cuda.is_bf16_supported(including_emulation=False)))
    return all(gather(torch.cpu._is_avx512_bf16_supported()))


def _let_fsdp_run_without_gpu() -> None:
    # Without an accelerator, accelerate ignores an FSDP config and runs DDP. It asks the state, which is made here, and
    # which kind of device the ranks have decides nothing else that matters (docs/decisions/0007).
    AcceleratorState._reset_state(reset_partial_state=True)  # else the next arm would find this arm's, and run DDP
    state = PartialState(cpu=True)
    state.distributed_type = DistributedType.MULTI_GPU


def _engine(trainer: Any) -> str:
    """The name in conf/backend of what really runs."""
    wrapped, optimizer = trainer.model_wrapped, getattr(trainer.optimizer, "optimizer", None)
    kind = type(wrapped).__name__
    if kind == "DeepSpeedEngine":
        offloaded = all(getattr(optimizer, name, False) for name in ("offload_optimizer", "offload_param"))
        return f"zero{wrapped.zero_optimization_stage()}{'_offload' if offloaded else ''}"
    if kind == "DistributedDataParallel":
        return "ddp"
    if any(isinstance(parameter, DTensor) for parameter in wrapped.parameters()):
        return "fsdp2"
    return "plain" if wrapped is trainer.model else kind
