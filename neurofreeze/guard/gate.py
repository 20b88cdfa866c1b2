"""Gate: a trigger that looks at every token of an answer, and a reaction where it fires."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from neurofreeze.data.batches import prompt_ids
from neurofreeze.data.examples import Example, digest
from neurofreeze.data.splits import require_disjoint
from neurofreeze.errors import DataError, GuardError
from neurofreeze.guard.calibration import Calibration
from neurofreeze.guard.events import Event, OnEvent
from neurofreeze.guard.reactions.base import Reaction
from neurofreeze.guard.triggers.base import Trigger
from neurofreeze.guard.triggers.fields import keys

STEPS = 8


class Gate:
    """Trigger x reaction, around one model's generate.

    Args:
        model: a transformers causal language model, whole on one device or spread by device_map.
        tokenizer: its own, with a chat template for calibration and reflection.
        trigger: measures how suspect the newest token is.
        reaction: what to do once a measurement reaches the threshold.
        steps: how many tokens of an answer are judged, the prompt's last token first; then the gate is out of the way
            and costs nothing. None: all of them.
        expert: a causal language model with the same token ids, for triggers and reactions that need one.
        on_event: called with every event as it happens, before the answer is returned or streamed.

    Attributes:
        threshold: what fires, "at least"; None until it is calibrated or set.
        calibration: how the threshold was found and what is to be expected of it; None once it is set by hand.
        enabled: False makes `generate` that of the model, bit for bit.
        events: of the last call, in order.

    Raises:
        GuardError: if an expert is missing, not needed or has another vocabulary, or steps is not positive.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        trigger: Trigger,
        reaction: Reaction,
        *,
        steps: int | None = STEPS,
        expert: Any = None,
        on_event: OnEvent | None = None,
    ) -> None:
        if steps is not None and (type(steps) is not int or steps < 1):
            raise GuardError(f"steps is {steps!r}; expected a positive number of tokens, or None for all")
        self.model, self.tokenizer, self.trigger, self.reaction = model, tokenizer, trigger, reaction
        self.steps, self.expert, self.on_event = steps, expert, on_event
        self.enabled = True
        self.events: list[Event] = []
        self.calibration: Calibration | None = None
        self._threshold = trigger.threshold
        self._check_expert()

    @property
    def needs_expert(self) -> bool:
        """Whether its trigger or its reaction asks the expert."""
        return self.trigger.needs_expert or self.reaction.needs_expert

    @property
    def withdraws(self) -> bool:
        """Whether it may give another answer in place of the model's."""
        return self.reaction.withdraws

    @property
    def threshold(self) -> float | None:
        """What fires, "at least"; infinite where nothing is to fire.

        Raises:
            GuardError: if it is set to NaN, which nothing reaches and nothing stays below.
        """
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if math.isnan(value):
            raise GuardError("the threshold is NaN, so that the gate would never fire; expected a number")
        self._threshold, self.calibration = float(value), None

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: Any = None,
        *,
        streamer: Any = None,
        **arguments: Any,
    ) -> Any:
        """`model.generate` under guard: the same arguments, the same types.

        Where an answer is replaced, none of it has been streamed: a streamer gets no token before the gate has let all
        rows through, `steps` tokens late. Scores of a replaced row are certain of its tokens.

        Raises:
            GuardError: for a mode that cannot be guarded, such as beam search, or a gate without a threshold.
        """
        from neurofreeze.guard.chain import Chain

        chain = Chain(self.model, self.tokenizer, [self], on_event=self.on_event)
        try:
            return chain.generate(inputs, generation_config, streamer=streamer, **arguments)
        finally:
            self.events = chain.events

    def calibrate(
        self,
        harmful: Sequence[Example],
        benign: Sequence[Example],
        *,
        target: float | None = 0.05,
        batch_size: int = 8,
    ) -> Calibration:
        """Choose the threshold at which at most `target` of the benign prompts trigger.

        A prompt triggers if any of the first `steps` tokens of its greedy answer does (the first 32 where all are
        judged). The answers are thrown away.

        Args:
            harmful: prompts, none of which the trigger was fitted on.
            benign: prompts like those the gate will see, look-alikes of harmful ones among them.
            target: false-positive rate; None to keep the threshold, such as NGSD's 1, and only measure it.
            batch_size: prompts at a time.

        Raises:
            DataError: if a prompt is harmful and benign at once, or was fitted on.
            GuardError: if there is no prompt of a kind, or no threshold to keep.
        """
        require_disjoint({"harmful": harmful, "benign": benign})
        self._require_new([*harmful, *benign], self.trigger.prompts, "fitted the trigger")
        if target is None and self._threshold is None:
            raise GuardError("target=None keeps a threshold, but the gate has none; give a target or set it")
        values = [self.measure(examples, batch_size=batch_size) for examples in (harmful, benign)]
        found = Calibration.of(
            *values,
            target=target,
            threshold=self._threshold if target is None else None,
            digests={"harmful": digest(harmful), "benign": digest(benign)},
            prompts=keys(harmful, benign),
        )
        self._threshold, self.calibration = found.threshold, found
        return found

    def measure(self, examples: Sequence[Example], *, batch_size: int = 8) -> list[float]:
        """Each prompt's largest value over the judged tokens of its greedy answer, whatever the threshold."""
        from neurofreeze.guard.observing import largest_values

        return largest_values(self, [prompt_ids(self.tokenizer, example) for example in examples], batch_size)

    def require_unseen(self, examples: Sequence[Example]) -> None:
        """Raise DataError if the trigger was fitted, or the threshold calibrated, on one of these prompts."""
        self._require_new(examples, self.trigger.prompts, "fitted the trigger")
        self._require_new(examples, self.calibration.prompts if self.calibration else (), "calibrated the gate")

    def require_ready(self, streaming: bool) -> None:
        """Raise GuardError unless the gate has a threshold, and a last step where a stream must be held back."""
        if self._threshold is None:
            raise GuardError(
                f"the gate's {self.trigger.name} trigger has no threshold; call calibrate(harmful, benign), or set "
                "gate.threshold"
            )
        if streaming and self.withdraws and self.steps is None:
            raise GuardError(
                f"reaction {self.reaction.name!r} may replace an answer at any step, and what is streamed cannot be "
                "taken back; give the gate a number of steps, or generate without a streamer"
            )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write gate.safetensors and gate.json; the model and the expert are named there, not copied."""
        from neurofreeze.guard import gate_file

        return gate_file.save(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        model: Any,
        tokenizer: Any,
        expert: Any = None,
        other_weights: bool = False,
        on_event: OnEvent | None = None,
    ) -> Gate:
        """Load a gate for the model that it was made for.

        Args:
            folder: written by `save_pretrained`.
            model: what to guard.
            tokenizer: its own.
            expert: the expert, if the gate needs one; None to load it by the name in the folder.
            other_weights: accept a model of the same sizes with other weights, such as a fine-tune of the gate's own,
                with a warning: the false-positive rate is not known there.
            on_event: see the class.

        Raises:
            GuardError: if a file is missing, changed or malformed, or the gate is for another model or chat template.
            ModelError: if the expert cannot be found or loaded.
        """
        from neurofreeze.guard import gate_file

        return gate_file.load(Path(folder), model, tokenizer, expert, other_weights, on_event)

    def _check_expert(self) -> None:
        if self.needs_expert != (self.expert is not None):
            who = f"trigger {self.trigger.name!r} with reaction {self.reaction.name!r}"
            raise GuardError(
                f"{who} needs {'an expert' if self.needs_expert else 'no expert'}; "
                f"{'give expert=' if self.needs_expert else 'leave expert= out'}"
            )
        if self.expert is not None:
            size, tokens = self.expert.config.get_text_config().vocab_size, len(self.tokenizer)
            if size < tokens:
                raise GuardError(
                    f"the expert has {size} tokens, the tokenizer {tokens}; expected a model of the same family "
                    "with the same token ids"
                )

    @staticmethod
    def _require_new(examples: Sequence[Example], seen: Sequence[str], what: str) -> None:
        known = set(seen)
        if found := next((example for example in examples if example.key in known), None):
            raise DataError(
                f"the prompt {found.prompt[:80]!r} {what}; calibration and evaluation need prompts that are new to it: "
                "remove it"
            )
