"""One conversation in a terminal: answers as they come, and what the guard decided beside them."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from rich.console import Console

from neurofreeze.config.serve import ChatConfig
from neurofreeze.guard.chain import Chain
from neurofreeze.guard.events import Event
from neurofreeze.serving.engine import Engine
from neurofreeze.serving.errors import ApiError
from neurofreeze.serving.jobs import Failed, Finished, Job, Piece, Reply, Sampling
from neurofreeze.serving.prompts import Prompts, request_text
from neurofreeze.serving.schemas import Message

if TYPE_CHECKING:
    from neurofreeze.guard.monitor import Monitor, Verdict

_STYLES = {"passed": "dim", "blocked": "bold red", "revised": "bold yellow", "flagged": "bold yellow"}


class Talk:
    """A conversation, which the model sees whole at each turn.

    Args:
        config: the settings.
        chain: the model with its gates and filters.
        monitor: of its prompts.
        console: where it is shown.
    """

    def __init__(self, config: ChatConfig, chain: Chain, monitor: Monitor | None, console: Console) -> None:
        self._config, self._console = config, console
        self._engine = Engine(chain, monitor, self)
        self._prompts = Prompts(chain.tokenizer)
        self._sampling = Sampling(config.temperature, config.top_p, config.seed)
        self._line = False  # whether the line on the screen is not at its end
        self.restart()

    def restart(self) -> None:
        """Forget what has been said."""
        system = self._config.system
        self.turns = [] if system is None else [Message(role="system", content=system)]

    def ask(self, text: str) -> None:
        """Say something, and show the answer; or why there is none, or not all of it, and then it has not been said.

        Raises:
            GuardError, JudgeError: if the guard cannot judge.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            self._tell("this is no text in UTF-8, which is expected; say it again", "bold yellow")
            return
        turns = [*self.turns, Message(role="user", content=text)]
        pieces: list[str] = []
        try:
            prompt = self._prompts.ids(turns)
        except ApiError as error:
            self._tell(error.message, "bold yellow")
            return
        limit, context = self._config.max_tokens, self._engine.context
        if context is not None and (limit := min(limit, context - len(prompt))) < 1:
            found = f"the conversation has {len(prompt)} tokens, the model reads {context}; /new begins another"
            self._tell(found, "bold yellow")
            return

        def show(reply: Reply) -> None:
            if isinstance(reply, Piece):
                pieces.append(reply.text)
                self._console.print(_shown(reply.text), end="", soft_wrap=True)
                self._line = True
            elif isinstance(reply, Finished | Failed):
                self._end_line()

        try:
            self._engine.answer([Job(prompt, request_text(turns), self._sampling, limit, show)])
        except KeyboardInterrupt:
            self._tell("interrupted; the conversation goes on from before it", "bold yellow")
            return
        self.turns = [*turns, Message(role="assistant", content="".join(pieces))]

    def on_event(self, job: Job, event: Event) -> None:
        """A gate or a filter has decided."""
        found = f"[{event.guard}] step {event.step}"
        if event.value is not None:
            found += f": {event.value:.3g}, threshold {event.threshold:.3g}"
        if event.benign_rate is not None:
            found += f", reached by {event.benign_rate:.1%} of benign prompts"
        self._tell(f"{found}; {event.reaction}: {event.outcome}", _STYLES.get(event.outcome, "yellow"))

    def on_verdict(self, job: Job, verdict: Verdict) -> None:
        """The monitor has seen a prompt."""
        found = f"[monitor] p {verdict.p_value:.2g}, {verdict.farthest} at {verdict.deviation:+.1f} standard deviations"
        alarms = ", ".join(verdict.alarms)
        self._tell(f"{found}; {alarms or 'no alarm'}", "bold red" if alarms else "dim")

    def _tell(self, text: str, style: str) -> None:
        self._end_line()
        self._console.print(text, style=style, soft_wrap=True)

    def _end_line(self) -> None:
        if self._line:
            self._console.print()
            self._line = False


def _shown(text: str) -> str:
    # A terminal obeys control characters: a model could wipe out what the guard has said of it.
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text)
