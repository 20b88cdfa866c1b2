"""What every trainer of this project is besides TRL's: it knows its backend, and when it is at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from neurofreeze.config.schema import TrainingConfig
from neurofreeze.distributed import world_size
from neurofreeze.errors import RunError
from neurofreeze.training.backends import ONE_PROCESS, Backend

TrlConfig = TypeVar("TrlConfig", bound=TrainingArguments)
_WRITER = "inline_container"  # where torch notices that less was written than it gave, whatever the reason


class Guarded:
    """Mixed into a trainer, before TRL's class.

    Whether the backend is the one that was asked for is looked at once the model is wrapped.

    Args:
        backend: how ranks share the model.
    """

    def __init__(self, *args: Any, backend: Backend = ONE_PROCESS, **kwargs: Any) -> None:
        self.backend = backend
        super().__init__(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]
        self.backend.require(self)
        return found

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        except RuntimeError as error:
            if _WRITER not in str(error):
                raise
            trainer: Any = self
            raise RunError(
                f"the checkpoint of step {trainer.state.global_step} could not be written to "
                f"{trainer.args.output_dir}: most likely the disk or your quota is full; free some space and run the "
                "same command again, it goes on from the checkpoint before"
            ) from error

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer looks at the step count after a step only: from the checkpoint of the last one, within an epoch, it
        # would take one more.
        trainer: Any = self
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]


def trainer_arguments(
    kind: type[TrlConfig], config: TrainingConfig, folder: Path, seed: int, backend: Backend, **own: Any
) -> TrlConfig:
    """A run's hyperparameters as TRL has them, of one rank. Within `backend.in_use()`.

    Args:
        kind: of the trainer's arguments.
        config: hyperparameters; its batch size is that of all ranks.
        folder: in which the trainer saves checkpoint-N.
        seed: of the data order and dropout.
        backend: that shares the model among ranks.
        own: arguments that only this kind has.
    """
    shared: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": config.steps or -1,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size // world_size(),
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.scheduler,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "max_length": config.max_length,
        "optim": config.optimizer,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "activation_checkpointing": config.gradient_checkpointing,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 500,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # else the loss of a training that has diverged reads 0
        "include_num_input_tokens_seen": "non_padding",
        "report_to": "none",
        "disable_tqdm": True,
    }
    found = kind(**shared, **backend.options(), **own)
    # One process on a machine with several GPUs uses the first; Trainer would put DataParallel around the model.
    found._n_gpu = min(found.n_gpu, 1)
    return found
