"""The guarded model: answers batches of jobs, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from neurofreeze.guard.chain import Chain
from neurofreeze.guard.events import Event
from neurofreeze.guard.monitor import Monitor, Verdict
from neurofreeze.guard.monitor.reference import Array
from neurofreeze.guard.monitor.watching import watching
from neurofreeze.serving.jobs import Job, Sampling
from neurofreeze.serving.rows import Row, Rows
from neurofreeze.serving.text import Answer


class Observer(Protocol):
    """Who is told what the guard decides, while it does."""

    def on_event(self, job: Job, event: Event) -> None:
        """A gate or a filter has decided."""
        ...

    def on_verdict(self, job: Job, verdict: Verdict) -> None:
        """The monitor has seen a prompt."""
        ...


class Engine:
    """Owns the model: only one thread may call it.

    Args:
        chain: the model with its gates and filters; its `on_event` is taken.
        monitor: sees each prompt, and none of what the guard asks the model beside it.
        observer: see there.

    Raises:
        MaskError: if the monitor's reference is for another model.
    """

    def __init__(self, chain: Chain, monitor: Monitor | None = None, observer: Observer | None = None) -> None:
        self.chain, self.monitor, self.observer = chain, monitor, observer
        self.chain.on_event = self._on_event
        self._rows: list[Row] = []
        self._reading = False
        self._ends = _ends(chain.model, chain.tokenizer)
        self._stack = ExitStack()
        if monitor is not None:
            reference = monitor.reference
            self._stack.enter_context(watching(chain.model, reference.mask, reference.pooling, self._see))

    @property
    def context(self) -> int | None:
        """How many tokens a prompt and its answer may have together; None if the model does not say."""
        return getattr(self.chain.model.config.get_text_config(), "max_position_embeddings", None)

    def answer(self, jobs: Sequence[Job]) -> None:
        """Answer jobs of equal sampling settings together; each hears of it by `send`.

        Raises:
            GuardError, JudgeError: if the guard cannot judge; no answer is given then.
        """
        tokenizer, sampling = self.chain.tokenizer, jobs[0].sampling
        judged = bool(self.chain.filters)
        rows = Rows([Row(job, partial(Answer, tokenizer, self._ends, job.limit, job.stop), judged) for job in jobs])
        prompts = {"input_ids": [job.prompt for job in jobs]}
        batch = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(self.chain.model.device)
        self._rows, self._reading = list(rows.rows), True
        late = self._answers_late
        with _seeded(sampling):
            found = self.chain.generate(
                **batch,
                **_settings(sampling),
                max_new_tokens=max(job.limit for job in jobs),
                pad_token_id=tokenizer.pad_token_id,
                streamer=None if late else rows,
                stopping_criteria=[rows],
                requests=[job.request for job in jobs],
            )
        if late:
            for tokens in (found, *found[:, batch["input_ids"].shape[1] :].T):
                rows.put(tokens)
        for row in rows.rows:
            row.finish()

    def close(self) -> None:
        """Leave the model as it was."""
        self._stack.close()

    @property
    def _answers_late(self) -> bool:
        """Whether a gate may replace an answer at its last token, so that nothing can be streamed."""
        return any(gate.enabled and gate.withdraws and gate.steps is None for gate in self.chain.gates)

    def _on_event(self, event: Event) -> None:
        row = self._rows[event.row]
        row.events.append(event)
        if self.observer is not None:
            self.observer.on_event(row.job, event)

    def _see(self, activations: Array) -> None:
        # The first pass of a batch reads the prompts; later ones with an empty cache are the guard's questions.
        if not self._reading or self.monitor is None:
            return
        self._reading = False
        new = [index for index, row in enumerate(self._rows) if row.job.monitor is None]
        for index, verdict in zip(new, self.monitor.see(activations[new]), strict=True):
            job = self._rows[index].job
            job.monitor = verdict.row
            if self.observer is not None:
                self.observer.on_verdict(job, verdict)


def _settings(sampling: Sampling) -> dict[str, Any]:
    if sampling.greedy:
        return {"do_sample": False, "num_beams": 1}
    # OpenAI's sampling has no top-k, which transformers' has by default.
    return {"do_sample": True, "num_beams": 1, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}


@contextmanager
def _seeded(sampling: Sampling) -> Iterator[None]:
    if sampling.greedy or sampling.seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(sampling.seed)
        yield


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    found = model.generation_config.eos_token_id
    found = tokenizer.eos_token_id if found is None else found
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])
