"""Say that the trigger fired, and let the answer go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from neurofreeze.guard.reactions.base import Call, Decision, Once
from neurofreeze.guard.triggers.base import Step


@dataclass(frozen=True)
class Flag:
    """An event, once a row, and nothing else."""

    name: ClassVar[str] = "flag"
    withdraws: ClassVar[bool] = False
    needs_expert: ClassVar[bool] = False

    def respond(self, call: Call) -> _Flagging:
        """The reaction in one call of generate."""
        return _Flagging()


class _Flagging(Once):
    def react(self, row: int, step: Step) -> Decision:
        """The row is flagged."""
        return Decision("flagged")
