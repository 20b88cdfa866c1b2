"""Gates and filters, one after the other, around one model's generate."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from neurofreeze.errors import GuardError
from neurofreeze.guard.answers import HeldStreamer, replaced
from neurofreeze.guard.events import Event, OnEvent, Outcome
from neurofreeze.guard.filters import Filter
from neurofreeze.guard.finishing import Finishing
from neurofreeze.guard.gate import Gate
from neurofreeze.guard.modes import budget, guardable, prompts_of
from neurofreeze.guard.reactions.base import Call
from neurofreeze.guard.session import Session

_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_making = threading.Lock()


class Chain:
    """Gates judge every step of an answer together; filters then judge it whole, each in turn.

    Args:
        model: a transformers causal language model.
        tokenizer: its own, with a chat template where a reaction reflects.
        gates: of this model; the first that replaces an answer ends the matter for the others.
        filters: each sees what the gates and the filters before it have left.
        on_event: called with every event as it happens, before the answer is returned or streamed.

    Attributes:
        enabled: False makes `generate` that of the model, bit for bit.
        events: of the last call, in order.

    Raises:
        GuardError: if a gate is of another model object.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        gates: Sequence[Gate] = (),
        filters: Sequence[Filter] = (),
        on_event: OnEvent | None = None,
    ) -> None:
        if any(gate.model is not model for gate in gates):
            raise GuardError("a gate in the chain is for another model object; expected gates of this one")
        self.model, self.tokenizer = model, tokenizer
        self.gates, self.filters, self.on_event = list(gates), list(filters), on_event
        self.enabled = True
        self.events: list[Event] = []

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: Any = None,
        *,
        streamer: Any = None,
        requests: Sequence[str] | None = None,
        **arguments: Any,
    ) -> Any:
        """`model.generate` under guard: the same arguments, the same types.

        One call at a time runs on a model; others wait.

        Args:
            inputs: token ids [prompts, length], padded on the left.
            generation_config: as of `model.generate`.
            streamer: sees nothing that may yet be replaced.
            requests: what filters judge answers to, one a prompt; None for the whole prompts as text.
            **arguments: as of `model.generate`.

        Raises:
            GuardError: for a mode that cannot be guarded, such as beam search, or a gate without a threshold.
            JudgeError: if a filter cannot be asked; no answer is given then.
        """
        with _lock(self.model):
            self.events = []
            gates = [gate for gate in self.gates if gate.enabled]
            if not self.enabled or not (gates or self.filters):
                return self.model.generate(inputs, generation_config, streamer=streamer, **arguments)
            given = {"inputs": inputs, **arguments}
            return self._guarded(gates, given, generation_config, streamer, requests)

    def _guarded(
        self,
        gates: list[Gate],
        arguments: dict[str, Any],
        generation_config: Any,
        streamer: Any,
        requests: Sequence[str] | None,
    ) -> Any:
        filtering = any(part.withdraws for part in self.filters)
        withdraws = filtering or any(gate.withdraws for gate in gates)
        config = guardable(self.model, generation_config, arguments, withdraws)
        for gate in gates:
            gate.require_ready(streaming=streamer is not None)
        ids, attention = prompts_of(arguments, config)
        call = self._call(
            ids, attention, budget(self.model, generation_config, arguments, config, ids.shape[1]), config
        )
        asked = self._asked(call, requests, config.num_return_sequences or 1)
        criteria = arguments.pop("stopping_criteria", None)
        finishing = Finishing(criteria, config, arguments.get("tokenizer"), len(ids))
        held = HeldStreamer(streamer) if streamer is not None and withdraws else None
        # A filter may replace any answer, so nothing is released before it has seen the whole.
        release = _nothing if held is None or filtering else held.release
        session = Session(gates, call, finishing, attention, self._report, release)
        with session.watching():
            result = self.model.generate(
                generation_config=generation_config,
                streamer=streamer if held is None else held,
                logits_processor=[*(arguments.pop("logits_processor", None) or ()), session],
                stopping_criteria=finishing.criteria(),
                **arguments,
            )
        prompt = ids.shape[1]
        own = [
            row[prompt : finishing.lengths.get(number, len(row))]
            for number, row in enumerate(_sequences(result).tolist())
        ]
        answers = {**session.answers, **self._filtered(call, asked, own, session.answers)}
        result = replaced(
            result, answers, finishing.lengths, prompt, _first(config.pad_token_id, config.eos_token_id) or 0
        )
        if held is not None:
            held.finish(_sequences(result), prompt)
        return result

    def _call(self, ids: torch.Tensor, attention: torch.Tensor, tokens: int, config: Any) -> Call:
        prompts = [row[mask.bool()].tolist() for row, mask in zip(ids, attention, strict=True)]
        end = _first(config.eos_token_id, self.tokenizer.eos_token_id)
        return Call(self.model, self.tokenizer, prompts, tokens, end)

    def _asked(self, call: Call, requests: Sequence[str] | None, copies: int) -> list[str]:
        """What filters judge each row's answer to; nothing without filters."""
        if not self.filters:
            return []
        if requests is None:
            return [call.text(prompt) for prompt in call.prompts]
        prompts = len(call.prompts) // copies
        if len(requests) != prompts:
            raise GuardError(f"there are {len(requests)} requests for {prompts} prompts; expected one a prompt")
        return [request for request in requests for _ in range(copies)]

    def _filtered(
        self, call: Call, asked: list[str], own: list[list[int]], replacing: dict[int, list[int]]
    ) -> dict[int, list[int]]:
        """Row -> the refusal that a filter puts in place of an answer."""
        refusals: dict[int, list[int]] = {}
        for part in self.filters:
            current = [{**replacing, **refusals}.get(row, ids) for row, ids in enumerate(own)]
            for row, (verdict, unsafe) in enumerate(part.verdicts(asked, [call.text(ids) for ids in current])):
                outcome: Outcome = "passed" if not unsafe else "blocked" if part.withdraws else "flagged"
                if outcome == "blocked":
                    refusals[row] = call.answer(part.text)
                found = {"verdict": verdict.value}
                self._report(Event(row, len(current[row]), part.label, None, None, part.action, outcome, details=found))
        return refusals

    def _report(self, event: Event) -> None:
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)


@contextmanager
def _lock(model: Any) -> Iterator[None]:
    # Hooks are on the model itself: they would see another call's tokens.
    with _making:
        lock = _locks.setdefault(model, threading.RLock())
    with lock:
        yield


def _sequences(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result.sequences


def _first(*ids: Any) -> int | None:
    """The first token id among ids, lists of ids and None."""
    for found in ids:
        if isinstance(found, (list, tuple)):
            found = found[0] if found else None
        if found is not None:
            return int(found)
    return None


def _nothing() -> None:
    pass
