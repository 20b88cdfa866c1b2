"""Reading a data set: bundled, a JSONL, JSON, CSV or Parquet file, or a hub id; chat or prompt/response columns."""

from __future__ import annotations

import glob
import warnings
from pathlib import Path
from typing import Any

from neurofreeze import hub
from neurofreeze.data import bundled
from neurofreeze.data.examples import Example
from neurofreeze.errors import DataError

# Column names in circulation, the first present wins.
PROMPTS = ("prompt", "instruction", "question", "goal", "forbidden_prompt", "query", "text")
RESPONSES = ("response", "output", "answer", "completion", "chosen")
CHATS = ("messages", "conversations")
_INPUTS = ("input", "context")  # the second half of an instruction, Alpaca's and Dolly's
_ROLES = {"human": "user", "gpt": "assistant"}
_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def read(source: str, *, responses: bool = True, limit: int | None = None) -> list[Example]:
    """Read a data set.

    Args:
        source: `bundled:<set>/<split>`; a .jsonl, .json, .csv or .parquet file; or a hub data set id, optionally with
            a split, `org/name:train`.
        responses: whether answers are needed.
        limit: use only the first so many rows.

    Raises:
        DataError: if the source is missing, unreadable, empty or lacks a column, naming the columns found and expected,
            or if a prompt or an answer that is needed is empty or not text.
    """
    if source.startswith(bundled.PREFIX):
        examples = bundled.load(source)
    else:
        examples = [_example(row, source, number) for number, row in enumerate(rows(source), 1)]
    if not examples:
        raise DataError(f"{source} has no rows; expected at least one")
    if responses and (bare := next((e for e in examples if not (e.response or "").strip()), None)):
        raise DataError(
            f"{source} has a prompt without an answer ({bare.prompt[:60]!r}); expected one of the columns "
            f"{', '.join(RESPONSES)} in every row, or a chat that ends with the assistant"
        )
    return examples[:limit]


def rows(source: str) -> Any:
    """The rows of a file or hub data set, dicts by column.

    Raises:
        DataError: if the source is missing or unreadable.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    try:
        if reader and path.is_file():
            if path.stat().st_size == 0:
                raise DataError(f"{source} is empty; expected rows with a prompt and an answer")
            if reader == "csv":
                return _from_csv(path)
            return getattr(Dataset, f"from_{reader}")(glob.escape(str(path)))  # [x] would be a pattern
        if reader or path.exists():
            found = "no such file" if reader else "neither a file of a known kind nor a hub data set id"
            raise DataError(f"{source}: {found}; expected {', '.join(_READERS)}, a hub id, or {bundled.PREFIX}...")
        name, _, split = source.partition(":")
        return _from_hub(name, split or "train")
    except DataError:
        raise
    except (DatasetGenerationError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise DataError(f"{source} cannot be read: {reason}") from error


def _from_csv(path: Path) -> Any:
    import pandas
    from datasets import Dataset

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            # Cells as they stand: numbers would be written anew (7 as 7.0 beside 7.5), "None" or "NA" taken for nothing
            # and a row's first cell for its name if it has one too many.
            cells = pandas.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], index_col=False)
    except pandas.errors.ParserWarning as error:
        raise DataError(
            f"{path} has rows with more cells than its first line has names; put texts with commas in quotes"
        ) from error
    return Dataset.from_pandas(cells, preserve_index=False)


def _from_hub(name: str, split: str) -> Any:
    import datasets

    # Without the hub only the local cache is asked; the client would retry for half a minute first.
    configured, unreachable = datasets.config.HF_HUB_OFFLINE, not hub.reachable()
    datasets.config.HF_HUB_OFFLINE = configured or unreachable
    try:
        return datasets.load_dataset(name, split=split)
    except ConnectionError as error:
        if not unreachable:
            raise
        raise DataError(
            f"no data set {name!r}: not a file here, not in the data set cache, and the hub cannot be reached; "
            f"expected a {', '.join(_READERS)} file, a hub id, or {bundled.PREFIX}..."
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = configured


def _example(row: dict[str, Any], source: str, number: int) -> Example:
    where, column = f"{source}, row {number}", _first(row, CHATS)
    if column is not None:
        return _from_chat(chat(row[column], where), where)
    prompt, response = _first(row, PROMPTS), _first(row, RESPONSES)
    if prompt is None and not row.keys() & PROMPTS:
        raise DataError(
            f"{source} has the columns {', '.join(row)}; expected {' or '.join(CHATS)}, or one of "
            f"{', '.join(PROMPTS)} together with one of {', '.join(RESPONSES)}"
        )
    asked: Any = None if prompt is None else row[prompt]
    answer: Any = None if response is None else row[response]
    if isinstance(asked, list) or isinstance(answer, list):  # TRL's conversational format
        before = turns(asked, "user", where)
        after = () if answer is None else turns(answer, "assistant", where)
        return _from_chat(after if after[: len(before)] == before else (*before, *after), where)
    halves = [asked, *(row[name] for name in _INPUTS if row.get(name))]
    text = "\n\n".join(_text(half, where) for half in halves if half is not None)
    return Example.of(_some(text, where), None if answer is None else _text(answer, where))


def turns(value: Any, role: str, where: str) -> tuple[tuple[str, str], ...]:
    """The (role, content) pairs of a chat; text is one message of `role`.

    Raises:
        DataError: as `chat`.
    """
    return ((role, value),) if isinstance(value, str) else chat(value, where)


def chat(turns: Any, where: str) -> tuple[tuple[str, str], ...]:
    """The (role, content) pairs of a chat, under the names of roles that templates know.

    Raises:
        DataError: if it is not a list of messages, naming the row by `where`.
    """
    try:
        pairs = [(t.get("role") or t["from"], _said(t)) for t in turns]
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{where}: a chat must be a list of objects with role and content, which is text") from error
    return tuple((_ROLES.get(role, role), content) for role, content in pairs)


def _said(turn: dict[str, Any]) -> str:
    """What a message says: text, or a list of parts that are text."""
    found = turn["value"] if turn.get("content") is None else turn["content"]
    said = [part["text"] for part in found] if isinstance(found, list) else [found]
    if not all(isinstance(text, str) for text in said):
        raise TypeError(f"found {type(found).__name__}")
    return "".join(said)


def _from_chat(found: tuple[tuple[str, str], ...], where: str) -> Example:
    pairs = list(found)
    response = pairs.pop()[1] if pairs and pairs[-1][0] == "assistant" else None
    if not pairs or pairs[-1][0] != "user":
        raise DataError(f"{where}: expected a user turn before the last answer, found {pairs[-1:]}")
    _some(pairs[-1][1], where)
    return Example(tuple(pairs), response)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str | int | float):
        raise DataError(f"{where} has a {type(value).__name__} where text was expected")
    return str(value)


def _some(prompt: str, where: str) -> str:
    if not prompt.strip():
        raise DataError(f"{where} has an empty prompt; fill it in, or leave the row out")
    return prompt


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)
