"""Reading preference pairs: a prompt with the answer to prefer and the one to reject, in the shapes TRL takes.

Plain columns prompt, chosen and rejected hold text. In TRL's conversational format chosen and rejected are lists of
messages, and prompt is one too, is text, or is missing, where the two conversations begin with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from neurofreeze.data import bundled, bundled_preferences, sources
from neurofreeze.data.examples import Example
from neurofreeze.errors import DataError

About = Literal["safety", "helpfulness"]
_ANSWERS = ("chosen", "rejected")
_Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Preference(Example):
    """An example whose `response` is the answer to prefer.

    Attributes:
        rejected: the other answer.
        about: what the pair teaches.
    """

    rejected: str = ""
    about: About = "safety"

    @property
    def record(self) -> str:
        """The conversation and both answers."""
        return f"{super().record} {self.rejected!r}"


def read_preferences(source: str, about: About) -> list[Preference]:
    """Read preference pairs.

    Args:
        source: `bundled:preferences/<split>`; a .jsonl, .json, .csv or .parquet file; or a hub data set id, optionally
            with a split, `org/name:train`.
        about: what the pairs teach.

    Raises:
        DataError: if the source is missing, unreadable or empty, or a row is no such pair, naming what was found.
    """
    if source.startswith(bundled.PREFIX):
        found = [
            Preference(example.turns, example.response, rejected, about)
            for example, rejected in bundled_preferences.load(source)
        ]
    else:
        found = [_pair(row, f"{source}, row {number}", about) for number, row in enumerate(sources.rows(source), 1)]
    if not found:
        raise DataError(f"{source} has no rows; expected at least one preference pair")
    return found


def _pair(row: dict[str, Any], where: str, about: About) -> Preference:
    missing = [name for name in _ANSWERS if not row.get(name)]
    if missing:
        raise DataError(
            f"{where} has {', '.join(missing)} empty or missing, and the columns {', '.join(row)}; expected prompt, "
            "chosen and rejected, each text or a list of messages"
        )
    column = next((name for name in sources.PROMPTS if row.get(name) is not None), None)
    prompt = () if column is None else sources.turns(row[column], "user", where)
    chosen, rejected = (sources.turns(row[name], "assistant", where) for name in _ANSWERS)
    if not prompt:
        prompt = _shared(chosen, rejected)
    answers = [_answer(turns, prompt, where) for turns in (chosen, rejected)]
    if not prompt or prompt[-1][0] != "user":
        raise DataError(f"{where}: expected a prompt that ends with the user, found {[role for role, _ in prompt]}")
    if not prompt[-1][1].strip():
        raise DataError(f"{where} has an empty prompt; expected some words")
    if answers[0] == answers[1]:
        raise DataError(f"{where} prefers an answer to itself; expected two different answers")
    return Preference(prompt, answers[0], answers[1], about)


def _shared(chosen: _Turns, rejected: _Turns) -> _Turns:
    """The turns that two conversations begin with."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    same = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    return chosen[: min(len(chosen), len(rejected)) - 1 if same is None else same]


def _answer(turns: _Turns, prompt: _Turns, where: str) -> str:
    """What a conversation has beyond its prompt, which must be one turn of the assistant's."""
    rest = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if len(rest) != 1 or rest[0][0] != "assistant" or not rest[0][1]:
        raise DataError(
            f"{where}: expected one answer of the assistant after the prompt, found turns of "
            f"{[role for role, _ in rest] or 'nobody'}"
        )
    return rest[0][1]
