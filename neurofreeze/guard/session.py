"""One call of generate under guard: before each token is chosen, every gate looks at every row that is not settled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.logits_process import LogitsProcessor

from neurofreeze.errors import GuardError
from neurofreeze.guard.events import Event, OnEvent, Outcome
from neurofreeze.guard.expert import ExpertRun
from neurofreeze.guard.finishing import Finishing
from neurofreeze.guard.reactions.base import Call
from neurofreeze.guard.triggers.base import Step, Watch

if TYPE_CHECKING:
    from neurofreeze.guard.gate import Gate


class Session(LogitsProcessor):
    """Stands in generate's list of logits processors, after the caller's own and before temperature and top-k.

    Scores are handed on untouched, the same tensor, unless a reaction changes them.

    Args:
        gates: in order; once one replaces a row's answer the others leave the row alone.
        call: what is generated.
        finishing: tells which rows are finished.
        attention: int64 [batch, prompt length].
        report: takes the events.
        released: called once nothing can be replaced any more.
    """

    def __init__(
        self,
        gates: Sequence[Gate],
        call: Call,
        finishing: Finishing,
        attention: torch.Tensor,
        report: OnEvent,
        released: Callable[[], None],
    ) -> None:
        self.call, self.finishing, self.attention = call, finishing, attention
        self.report, self.released = report, released
        self.batch, self.prompt_length = attention.shape
        self.answers: dict[int, list[int]] = {}  # row -> the answer in place of its own
        self.runs = [_Run(gate, self) for gate in gates]
        self._stack = ExitStack()
        self._logits: torch.Tensor | None = None
        self._experts: dict[int, ExpertRun] = {}
        self._over = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The block in which generate is called."""
        with self._stack:
            model = self.call.model
            for run in self.runs:
                run.watch = self._stack.enter_context(run.gate.trigger.watch(model, self.batch, run.live))
            if any(run.gate.needs_expert for run in self.runs):
                # A PEFT model's generate runs the model inside.
                inner = model.get_base_model() if hasattr(model, "get_base_model") else model
                self._stack.callback(inner.register_forward_hook(self._see).remove)
            yield
        for run in self.runs:
            run.end()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Judge the rows that go on, and hand on the scores."""
        if self._over:
            return scores
        number = input_ids.shape[1] - self.prompt_length
        # Every gate measures before any of them reacts, since a reflection runs the model.
        steps = [self._step(run.gate, number, input_ids, scores, run.open_rows()) for run in self.runs]
        for run, step in zip(self.runs, steps, strict=True):
            run.measure(step)
        for run, step in zip(self.runs, steps, strict=True):
            run.react(step)
            running = [row for row in range(self.batch) if self.runs_on(row)]
            scores = run.responder.adjust(self._step(run.gate, number, input_ids, scores, running), scores)
            run.close(number)
        if not any(run.busy() for run in self.runs):
            self._over = True
            self._stack.close()  # nothing looks any more
            if not self.answers:
                self.released()
        return scores

    def runs_on(self, row: int) -> bool:
        """Whether a row is neither finished nor replaced."""
        return not self.finishing.finished[row] and row not in self.answers

    def replace(self, row: int, answer: list[int]) -> None:
        """Give another answer in place of the row's own."""
        self.answers[row] = answer
        self.finishing.withdrawn.add(row)

    def _see(self, module: Any, inputs: Any, output: Any) -> None:
        if self.runs[0].live():
            self._logits = output.logits[:, -1].to(torch.float32, copy=True)

    def _step(self, gate: Gate, number: int, ids: torch.Tensor, scores: torch.Tensor, rows: list[int]) -> Step:
        logits = scores[:, :0] if self._logits is None else self._logits.to(scores.device)

        def expert(rows: list[int]) -> torch.Tensor:
            key = id(gate.expert)
            if key not in self._experts:
                self._experts[key] = ExpertRun(gate.expert, self.attention, logits.shape[1])
            return self._experts[key].logits(ids, rows)

        return Step(number, ids, logits, rows, expert)


class _Run:
    """One gate in one call."""

    watch: Watch

    def __init__(self, gate: Gate, session: Session) -> None:
        self.gate, self.session = gate, session
        self.responder = gate.reaction.respond(session.call)
        self.settled = [False] * session.batch
        self.highest: list[float | None] = [None] * session.batch
        self.steps = [0] * session.batch
        self.fired: dict[int, float] = {}

    def live(self) -> bool:
        return not self.session.call.away

    def open_rows(self) -> list[int]:
        return [row for row in range(self.session.batch) if not self.settled[row] and self.session.runs_on(row)]

    def measure(self, step: Step) -> None:
        self.fired = {}
        if step.rows:
            found = self.watch.values(step).tolist()
            if not all(map(math.isfinite, found)):
                raise GuardError(
                    f"the {self.gate.trigger.name} trigger measured {found} at step {step.number}; expected finite "
                    "numbers. Does the model give finite activations?"
                )
            for row, value in zip(step.rows, found, strict=True):
                highest = self.highest[row]
                self.highest[row] = value if highest is None else max(highest, value)
                self.steps[row] = step.number
            threshold = self.gate.threshold
            assert threshold is not None
            self.fired = {row: value for row, value in zip(step.rows, found, strict=True) if value >= threshold}
            if self.fired:
                self.watch.fired(list(self.fired))

    def react(self, step: Step) -> None:
        for row, value in self.fired.items():
            if row in self.session.answers:
                continue
            decision = self.responder.react(row, step)
            self.settled[row] = decision.settled
            if decision.answer is not None:
                self.session.replace(row, decision.answer)
            self._tell(row, step.number, value, decision.outcome, decision.details)

    def close(self, number: int) -> None:
        """After a step: its rows that need no verdict any more."""
        last = self.gate.steps is not None and number + 1 >= self.gate.steps
        for row in range(self.session.batch):
            if not self.settled[row] and (last or not self.session.runs_on(row)):
                self._pass(row)

    def end(self) -> None:
        """After the last step: rows that were still open."""
        for row in range(self.session.batch):
            if not self.settled[row]:
                self._pass(row)

    def busy(self) -> bool:
        return any(
            self.session.runs_on(row) and (not self.settled[row] or self.responder.lasts(row))
            for row in range(self.session.batch)
        )

    def _pass(self, row: int) -> None:
        self.settled[row] = True
        value, threshold = self.highest[row], self.gate.threshold
        if value is not None and threshold is not None and value < threshold:
            self._tell(row, self.steps[row], value, "passed", {})

    def _tell(self, row: int, number: int, value: float, outcome: Outcome, details: dict[str, Any]) -> None:
        gate, found = self.gate, self.gate.calibration
        benign, harmful = (None, None) if found is None else found.rates(value)
        name, reaction = gate.trigger.name, gate.reaction.name
        self.session.report(
            Event(row, number, name, value, gate.threshold, reaction, outcome, benign, harmful, details)
        )
