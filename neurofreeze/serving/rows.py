"""The rows of one batch while it is generated: each token to whom it belongs, and each row stopped in its own time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation.stopping_criteria import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from neurofreeze.guard.events import Event
from neurofreeze.serving.errors import ApiError
from neurofreeze.serving.jobs import Failed, Finished, Job, Piece
from neurofreeze.serving.text import Answer


class Row:
    """One job in a batch.

    Args:
        job: see there.
        make: an answer of this job, from its beginning.
        judged: filters look at the answer once the whole batch is there, so that nobody is told before that it is over.

    Attributes:
        generated: the answer as the model writes it; what is given may lag behind it, or be another.
        given: the answer as the caller gets it.
        dropped: nobody waits for it any more; tokens that follow are padding.
        over: whether the caller has been told all.
    """

    def __init__(self, job: Job, make: Callable[[], Answer], judged: bool = False) -> None:
        self.job, self.judged = job, judged
        self.generated, self.given = make(), make()
        self.dropped = self.over = False
        self.events: list[Event] = []

    def put(self, token: int) -> None:
        """A token that nothing can take back any more."""
        if self.dropped or self.given.ending is not None:
            # Only now: a gate tells of a row in the step after the row's last.
            if self.dropped or not self.judged:
                self.finish()
        elif text := self.given.add(token):
            self.job.begun = True
            self.job.send(Piece(text))

    def finish(self) -> None:
        """Tell the caller that the answer is whole, or that it is not."""
        if self.over:
            return
        self.over = self.job.begun = True
        if self.given.ending is None:
            self.job.send(Failed(ApiError(504, "the answer took too long; ask for fewer tokens", "timeout")))
            return
        blocked = any(event.outcome == "blocked" for event in self.events)
        events = [{name: value for name, value in event.as_json().items() if name != "row"} for event in self.events]
        reason = "content_filter" if blocked else self.given.ending
        self.job.send(Finished(reason, self.given.tokens, events, self.job.monitor))


class Rows(BaseStreamer, StoppingCriteria):
    """Goes into generate as its streamer and among its stopping criteria."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._prompted = False

    def put(self, value: torch.Tensor) -> None:
        """The prompts first, then a token a row."""
        if not self._prompted:
            self._prompted = True
            return
        for row, token in zip(self.rows, value.tolist(), strict=True):
            row.put(token)

    def end(self) -> None:
        """All tokens have come."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Bool [batch]: rows whose answer has ended, or for which nobody waits."""
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            if row.generated.ending is None:
                row.generated.add(token)
                row.dropped = row.dropped or row.job.cancelled or row.job.late
        stopped = [row.dropped or row.generated.ending is not None for row in self.rows]
        return torch.tensor(stopped, device=input_ids.device)
