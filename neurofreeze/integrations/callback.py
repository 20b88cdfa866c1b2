"""FreezeCallback: freezing for any transformers or TRL trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from neurofreeze.console import say
from neurofreeze.distributed import rank
from neurofreeze.errors import FreezeError
from neurofreeze.freezer import Freezer, freeze
from neurofreeze.mask import NeuronMask
from neurofreeze.record import FreezeRecord

_VERIFIED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
}


class FreezeCallback(TrainerCallback, ExportableState):
    """Freezes the mask's neurons from the first step, and checks them at every save and at the end.

    The trainer's checkpoints carry the mask and the fingerprint of the frozen bits; a run that resumes from one must
    have the same mask, and the frozen bits must still be the same.

    Args:
        mask: the neurons to freeze; None to take the mask of the checkpoint that training resumes from.
        check_every: also check every so many optimizer steps; 0 for only at saves and at the end.
        report: takes the outcome of each check on rank 0: `global_step`, `frozen_intact`, `fingerprint`, `seconds`.

    Raises:
        FreezeError: from `trainer.train()`, if freezing cannot be guaranteed or a frozen element changed.
    """

    def __init__(
        self,
        mask: NeuronMask | None = None,
        check_every: int = 0,
        report: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.mask = mask
        self.check_every = check_every
        self.report = report
        self.freezer: Freezer | None = None
        self._checks = 0
        self._seconds = 0.0

    def state(self) -> dict[str, Any]:
        """What the trainer saves with each checkpoint."""
        carried = {} if self.freezer is None else self.freezer.state_dict()
        return {"args": {"check_every": self.check_every}, "attributes": {"carried": carried}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach once the model is wrapped, the optimizer built and any checkpoint loaded."""
        _refuse_unverified(AcceleratorState())
        _refuse_data_parallel(args)
        resumed = state.global_step > 0
        carried = self._carried(state) if resumed else {}
        mask = NeuronMask.from_state_dict(carried) if resumed and self.mask is None else self.mask
        broken_off = self.freezer
        self.freezer = freeze(kwargs["model"], kwargs["optimizer"], mask)
        if broken_off is not None:
            broken_off.release()
        if resumed:
            self.freezer.load_state_dict(carried)
            self._check(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check now and then, if asked."""
        if self.check_every and state.global_step % self.check_every == 0:
            self._check(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check what was just saved."""
        self._check(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check a last time, say what checking cost, and let go of the model."""
        self._check(state.global_step, last=True)
        if rank() == 0:
            say(f"frozen neurons: intact in all {self._checks} checks, which took {self._seconds:.1f} s")

    def _check(self, step: int, last: bool = False) -> None:
        freezer = self._attached()
        try:
            if last:
                freezer.detach()
            else:
                freezer.check()
        except FreezeError:
            self._report(step, intact=False)
            raise
        self._checks += 1
        self._seconds += freezer.check_seconds
        self._report(step, intact=True)

    def _report(self, step: int, intact: bool) -> None:
        if self.report is not None and rank() == 0:
            freezer = self._attached()
            seconds = round(freezer.check_seconds, 3)
            row = {"frozen_intact": intact, "fingerprint": freezer.fingerprint, "seconds": seconds}
            self.report({"global_step": step, **row})

    def _attached(self) -> Freezer:
        if self.freezer is None:
            raise FreezeError("training went on without on_train_begin; add FreezeCallback before calling train()")
        return self.freezer

    def _carried(self, state: TrainerState) -> dict[str, Any]:
        """The record in a resumed checkpoint; of several, from several callbacks, the newest with this mask."""
        found = (state.stateful_callbacks or {}).get(type(self).__name__, [])
        records = [saved["attributes"]["carried"] for saved in (found if isinstance(found, list) else [found])]
        for record in reversed(records):
            if self.mask is not None and record and FreezeRecord.of(record).mask == self.mask:
                return record
        return records[-1] if records else {}


def _refuse_unverified(state: AcceleratorState) -> None:
    found = state.distributed_type
    if found not in _VERIFIED:
        raise FreezeError(f"freezing under {found.value} is not verified yet; use one process, DDP, FSDP2 or DeepSpeed")
    if found == DistributedType.FSDP and not state.is_fsdp2:
        raise FreezeError("freezing in a trainer under FSDP1 is not verified yet; set fsdp_version to 2 in fsdp_config")
    if found == DistributedType.DEEPSPEED:
        _refuse_deepcompile(state.deepspeed_plugin.deepspeed_config)


def _refuse_data_parallel(args: TrainingArguments) -> None:
    # The trainer hands over the module, not what it has wrapped it in.
    if args.n_gpu > 1:
        raise FreezeError(
            "freezing under DataParallel is not verified, in which the trainer wraps the model since one process sees "
            f"{args.n_gpu} GPUs; start a process for each (accelerate launch, torchrun), or let CUDA_VISIBLE_DEVICES "
            "name one"
        )


def _refuse_deepcompile(config: dict[str, Any]) -> None:
    # The trainer hands over the module, not the engine that would say so itself.
    if config.get("compile", {}).get("deepcompile"):
        raise FreezeError(
            "DeepCompile bypasses gradient hooks, so freezing under it cannot be guaranteed; switch it off"
        )
