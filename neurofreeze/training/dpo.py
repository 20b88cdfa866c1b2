"""Preference training with TRL's DPOTrainer (DPO, arXiv 2305.18290), with or without frozen neurons.

Interrupted, resumed and saved as supervised fine-tuning is. In one process: other backends are not verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from neurofreeze.config.schema import TrainingConfig
from neurofreeze.data.examples import digest
from neurofreeze.data.preferences import Preference
from neurofreeze.errors import DataError
from neurofreeze.evaluation.ablation import ablated
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_model
from neurofreeze.training.backends import Backend
from neurofreeze.training.fitting import TrainingResult, fit
from neurofreeze.training.guarded import Guarded, trainer_arguments


class PreferenceTrainer(Guarded, DPOTrainer):
    """DPOTrainer as this project runs it.

    Args:
        suppressed: neurons whose activations are zero in the forward passes that train; neither the reference model nor
            evaluation goes without them.
    """

    def __init__(self, *args: Any, suppressed: NeuronMask | None = None, **kwargs: Any) -> None:
        self.suppressed = suppressed
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, without the suppressed neurons."""
        suppressed = self.suppressed
        with nullcontext() if suppressed is None else ablated(self.model, suppressed, training_only=True):
            return super().train(*args, **kwargs)


@dataclass
class Preferring:
    """To prefer the chosen answers of `pairs` over the rejected ones, more than the starting model does.

    Args:
        pairs: preference pairs.
        config: hyperparameters.
        beta: how much the model may leave the reference; the smaller, the more.
        suppressed: as for PreferenceTrainer.
    """

    pairs: Sequence[Preference]
    config: TrainingConfig
    beta: float
    suppressed: NeuronMask | None = None
    _reference: Any = field(default=None, init=False, repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        """The pairs and their loss."""
        suppressed = None if self.suppressed is None else self.suppressed.digest
        return {"pairs": digest(self.pairs), "beta": self.beta, "suppressed": suppressed}

    def prepare(self, base: Path, seed: int) -> None:
        """Load the reference model, which is the starting one."""
        self._reference = load_model(base, torch.float32)

    def arguments(self, folder: Path, seed: int, backend: Backend) -> DPOConfig:
        """TRL's, of the hyperparameters."""
        return trainer_arguments(DPOConfig, self.config, folder, seed, backend, beta=self.beta)

    def trainer(self, **parts: Any) -> PreferenceTrainer:
        """The trainer, once it is sure that it has left out no pair.

        Raises:
            DataError: if a prompt leaves no room for an answer.
        """
        data = Dataset.from_list([_row(pair) for pair in self.pairs])
        found = PreferenceTrainer(ref_model=self._reference, train_dataset=data, suppressed=self.suppressed, **parts)
        self._reference = None  # the trainer's, which goes before the model is saved
        left_out = len(self.pairs) - len(found.train_dataset)
        if left_out:
            raise DataError(
                f"the prompts of {left_out} of {len(self.pairs)} preference pairs take training.max_length="
                f"{self.config.max_length} tokens or more, so that nothing of their answers is left; raise it, or "
                "leave them out"
            )
        return found


def prefer(
    base: Path,
    output: Path,
    pairs: Sequence[Preference],
    config: TrainingConfig,
    *,
    beta: float,
    mask: NeuronMask | None = None,
    suppress: bool = False,
    **options: Any,
) -> TrainingResult:
    """Train the checkpoint `base` on preferences, with itself as reference, and save it at `output` in its precision.

    Args:
        base: checkpoint folder.
        output: folder to create; it appears only when complete.
        pairs: preference pairs.
        config: hyperparameters.
        beta: DPO's temperature.
        mask: neurons to freeze, None to train everything.
        suppress: train without the activations of the frozen neurons, so that others must do without them.
        options: others of `fit`, which also says what is raised; `seed` is needed. There is one backend, one process.

    Raises:
        DataError: if a prompt leaves no room for an answer.
    """
    task = Preferring(pairs, config, beta, mask if suppress else None)
    return fit(base, output, task, config, mask=mask, **options)


def _row(pair: Preference) -> dict[str, Any]:
    """A pair in TRL's conversational format."""
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in (pair.response, pair.rejected))
    return {"prompt": pair.messages, "chosen": chosen, "rejected": rejected}
