"""FreezeCallback: freezing for any transformers or TRL trainer."""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neurofreeze.errors import FreezeError
from neurofreeze.freezer import Freezer, freeze
from neurofreeze.mask import NeuronMask

_VERIFIED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
}


class FreezeCallback(TrainerCallback):
    """Freezes the mask's neurons from the first step, and checks them at every save and at the end.

    Args:
        mask: the neurons to freeze.
        check_every: also check every so many optimizer steps; 0 for only at saves and at the end.

    Raises:
        FreezeError: from `trainer.train()`, if freezing cannot be guaranteed or a frozen element changed.
    """

    def __init__(self, mask: NeuronMask, check_every: int = 0) -> None:
        self.mask = mask
        self.check_every = check_every
        self.freezer: Freezer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach once the model is wrapped, the optimizer built and any checkpoint loaded."""
        _refuse_unverified(AcceleratorState())
        self.freezer = freeze(kwargs["model"], kwargs["optimizer"], self.mask)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check now and then, if asked."""
        if self.check_every and state.global_step % self.check_every == 0:
            self._attached().check()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check what was just saved."""
        self._attached().check()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check a last time and let go of the model."""
        self._attached().detach()

    def _attached(self) -> Freezer:
        if self.freezer is None:
            raise FreezeError("training went on without on_train_begin; add FreezeCallback before calling train()")
        return self.freezer


def _refuse_unverified(state: AcceleratorState) -> None:
    found = state.distributed_type
    if found not in _VERIFIED:
        raise FreezeError(f"freezing under {found.value} is not verified yet; use one process, DDP, FSDP2 or DeepSpeed")
    if found == DistributedType.FSDP and not state.is_fsdp2:
        raise FreezeError("freezing in a trainer under FSDP1 is not verified yet; set fsdp_version to 2 in fsdp_config")
    if found == DistributedType.DEEPSPEED:
        _refuse_deepcompile(state.deepspeed_plugin.deepspeed_config)


def _refuse_deepcompile(config: dict[str, Any]) -> None:
    # The trainer hands over the module, not the engine that would say so itself.
    if config.get("compile", {}).get("deepcompile"):
        raise FreezeError(
            "DeepCompile bypasses gradient hooks, so freezing under it cannot be guaranteed; switch it off"
        )
