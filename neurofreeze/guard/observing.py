"""What a trigger measures when nothing is done about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neurofreeze.guard.chain import Chain
from neurofreeze.guard.gate import Gate
from neurofreeze.guard.reactions.flag import Flag

if TYPE_CHECKING:
    from neurofreeze.guard.events import Event

UNLIMITED = 32  # tokens looked at where a gate judges all of an answer


def largest_values(gate: Gate, prompts: Sequence[list[int]], batch_size: int) -> list[float]:
    """The largest value of each prompt of token ids over the judged tokens of its greedy answer."""
    steps = gate.steps or UNLIMITED
    expert = gate.expert if gate.trigger.needs_expert else None
    watching = Gate(gate.model, gate.tokenizer, gate.trigger, Flag(), steps=steps, expert=expert)
    watching.threshold = math.inf
    chain = Chain(gate.model, gate.tokenizer, [watching])
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    found = [math.nan] * len(prompts)
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        batch = gate.tokenizer.pad(
            {"input_ids": [prompts[index] for index in indices]}, padding_side="left", return_tensors="pt"
        ).to(gate.model.device)
        chain.generate(**batch, max_new_tokens=steps, do_sample=False, pad_token_id=gate.tokenizer.pad_token_id)
        for event in chain.events:
            found[indices[event.row]] = _value(event)
    return found


def _value(event: Event) -> float:
    assert event.value is not None
    return event.value
