"""Supervised fine-tuning with TRL's SFTTrainer, with or without frozen neurons, interruptible and resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig

from neurofreeze.config.schema import TrainingConfig
from neurofreeze.data.examples import Example, digest
from neurofreeze.errors import DataError
from neurofreeze.training.backends import Backend
from neurofreeze.training.fitting import TrainingResult, fit
from neurofreeze.training.objectives import Joint, Objective
from neurofreeze.training.trainer import SupervisedTrainer, arguments, row

__all__ = ["Supervised", "TrainingResult", "fine_tune"]


@dataclass
class Supervised:
    """To give the answers of `examples`.

    Args:
        examples: prompts with answers.
        config: hyperparameters.
        objectives: what training loses beside the loss on the examples.
    """

    examples: Sequence[Example]
    config: TrainingConfig
    objectives: Sequence[Objective] = ()
    _joint: Joint | None = field(default=None, init=False)

    @property
    def identity(self) -> dict[str, Any]:
        """The examples and the objectives, whose rows come with each micro-batch."""
        objectives = [objective.identity for objective in self.objectives]
        micro_batches = {"micro_batches": self.config.gradient_accumulation} if objectives else {}
        return {"examples": digest(self.examples), "objectives": objectives, **micro_batches}

    def prepare(self, base: Path, seed: int) -> None:
        """Get the objectives ready."""
        ready = [each.prepare(base, self.config.max_length, seed) for each in self.objectives]
        self._joint = Joint(ready) if ready else None

    def arguments(self, folder: Path, seed: int, backend: Backend) -> SFTConfig:
        """TRL's, of the hyperparameters."""
        return arguments(self.config, folder, seed, backend)

    def trainer(self, **parts: Any) -> SupervisedTrainer:
        """The trainer of the examples.

        Raises:
            DataError: if there is none with an answer within `config.max_length` tokens.
        """
        if not self.examples:
            raise DataError("there is nothing to train on; expected at least one example, of data.train, say")
        data = Dataset.from_list([row(example) for example in self.examples])
        return SupervisedTrainer(objectives=self._joint, train_dataset=data, **parts)


def fine_tune(
    base: Path,
    output: Path,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    objectives: Sequence[Objective] = (),
    **options: Any,
) -> TrainingResult:
    """Fine-tune the checkpoint `base` on `examples` and save the result at `output` in the precision of `base`.

    Args:
        base: checkpoint folder.
        output: folder to create; it appears only when complete.
        examples: prompts with answers.
        config: hyperparameters.
        objectives: what training loses beside the loss on the examples.
        options: those of `fit`, which also says what is raised; `seed` is needed.
    """
    return fit(base, output, Supervised(examples, config, objectives), config, **options)
