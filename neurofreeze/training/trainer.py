"""SupervisedTrainer: TRL's SFTTrainer as this project runs it, and what it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from neurofreeze.config.schema import TrainingConfig
from neurofreeze.console import say
from neurofreeze.data.examples import Example
from neurofreeze.distributed import gather, rank, world_size
from neurofreeze.errors import DataError
from neurofreeze.training.backends import ONE_PROCESS, Backend
from neurofreeze.training.guarded import Guarded, trainer_arguments
from neurofreeze.training.objectives import Joint
from neurofreeze.training.order import FilledEpochs, with_filler


class SupervisedTrainer(Guarded, SFTTrainer):
    """SFTTrainer with the model's own loss where there is no GPU.

    TRL's chunked log-probability head saves GPU memory; its CPU fallback takes more than half of a small model's step.
    The order of examples is that of one process, on any number of ranks.

    Args:
        objectives: what training loses beside the loss on its data, None for nothing.

    Raises:
        DataError: if no example has an answer within `max_length` tokens.
    """

    def __init__(self, *args: Any, objectives: Joint | None = None, **kwargs: Any) -> None:
        self.objectives = objectives
        self._micro_batch = (-1, 0)  # the optimizer step, and how many of its micro-batches have run
        self._terms: dict[str, list[float]] = {}
        self.train_dataset: Any = None
        super().__init__(*args, **kwargs)
        self._tell_left_out(len(kwargs["train_dataset"]))
        if world_size() > 1:
            self.train_dataset = with_filler(self.train_dataset)

    def _tell_left_out(self, given: int) -> None:
        """TRL leaves out what has nothing to learn from, without a word."""
        left_out, length = given - len(self.train_dataset), self.args.max_length
        if left_out == given:
            raise DataError(
                f"the prompts of all {given} examples take training.max_length={length} tokens or more, so that "
                "nothing of their answers is left to train on; raise it"
            )
        if left_out and rank() == 0:
            say(
                f"{left_out} of {given} examples are left out: their prompts take training.max_length={length} tokens "
                "or more"
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if world_size() == 1:
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * world_size()
        return FilledEpochs(len(self.train_dataset) - 1, batch_size, self.args.data_seed)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Mean over the answer tokens, in nats, and the objectives' terms."""
        if self.objectives is not None:
            return self._joint_loss(self.objectives, model, inputs, *args, **kwargs)
        if self.args.device.type == "cpu":
            return Trainer.compute_loss(self, model, inputs, *args, **kwargs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _joint_loss(
        self, objectives: Joint, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        step, done = self._micro_batch
        done = 0 if step != self.state.global_step else done
        self._micro_batch = (self.state.global_step, done + 1)
        number = self.state.global_step * self.args.gradient_accumulation_steps + done
        joined, placed = objectives.join(inputs, number)
        loss, outputs = Trainer.compute_loss(self, model, joined, True, num_items_in_batch)
        terms = objectives.losses(outputs.logits, placed)
        for name, value in terms.items():
            self._terms.setdefault(name, []).append(value.item())
        # The training loss is divided by the tokens of all micro-batches of the step already.
        shares = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        loss = loss + objectives.weighted(terms) / shares
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs, with the mean of each objective over all ranks since the last ones."""
        means = gather({name: sum(values) / len(values) for name, values in self._terms.items()})
        self._terms.clear()
        super().log({**logs, **{name: sum(m[name] for m in means) / len(means) for name in means[0]}}, *args, **kwargs)


def arguments(config: TrainingConfig, folder: Path, seed: int, backend: Backend = ONE_PROCESS) -> SFTConfig:
    """What the trainer of a run is given; see `trainer_arguments`."""
    return trainer_arguments(SFTConfig, config, folder, seed, backend)


def row(example: Example) -> dict[str, Any]:
    """An example as TRL reads it: the loss is on the completion only."""
    return {"prompt": example.messages, "completion": [{"role": "assistant", "content": example.response}]}
