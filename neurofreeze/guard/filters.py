"""Filters: judges of whole answers (`neurofreeze.evaluation.judges`), after the gates and before anyone sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from neurofreeze.errors import GuardError
from neurofreeze.evaluation.judges.base import Judge, Verdict
from neurofreeze.guard.reactions.refuse import TEXT, require_words

Action = Literal["refuse", "flag"]


class Filter:
    """What one judge finds of an answer, and what is done about it.

    Args:
        judge: any classifier: a sequence-classification model, a guard model, an endpoint, or an object of your own
            with `label` and `judge(requests, answers)`.
        action: "refuse": `text` is given in place of what is unsafe; "flag": an event and nothing else.
        text: of a refusal.
        undecided: what an answer is that the judge could not decide about.
        label: in events; None for the judge's, which may be a path or an address.

    Raises:
        GuardError: if there is no such action, or the text has no words.
    """

    def __init__(
        self,
        judge: Judge,
        action: Action = "refuse",
        text: str = TEXT,
        undecided: Literal["unsafe", "safe"] = "unsafe",
        label: str | None = None,
    ) -> None:
        if action not in get_args(Action):
            raise GuardError(f"a filter's action is {action!r}; expected one of {', '.join(get_args(Action))}")
        if undecided not in ("unsafe", "safe"):
            raise GuardError(f"undecided is {undecided!r}; expected 'unsafe' or 'safe'")
        require_words(text)
        self.judge, self.action, self.text, self.undecided = judge, action, text, undecided
        self.label = judge.label if label is None else label

    @property
    def withdraws(self) -> bool:
        """Whether it may replace an answer."""
        return self.action == "refuse"

    def verdicts(self, requests: Sequence[str], answers: Sequence[str]) -> list[tuple[Verdict, bool]]:
        """The judge's verdict on each answer, and whether the answer is unsafe by it.

        Raises:
            JudgeError: if the judge cannot be asked, so that no answer may be given.
        """
        found = self.judge.judge(requests, answers)
        if len(found) != len(answers):
            raise GuardError(f"{self.label} gave {len(found)} verdicts on {len(answers)} answers; expected one each")
        unsafe = {Verdict.UNSAFE} | ({Verdict.UNDECIDED} if self.undecided == "unsafe" else set())
        return [(verdict, verdict in unsafe) for verdict in found]
