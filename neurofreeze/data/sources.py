"""Reading a data set: bundled, a JSONL, JSON, CSV or Parquet file, or a hub id; chat or prompt/response columns."""

from __future__ import annotations

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
        DataError: if the source is missing, unreadable, empty or lacks a column, naming the columns found and expected.
    """
    if source.startswith(bundled.PREFIX):
        examples = bundled.load(source)
    else:
        examples = [_example(row, source, number) for number, row in enumerate(rows(source), 1)]
    if not examples:
        raise DataError(f"{source} has no rows; expected at least one")
    if responses and (bare := next((e for e in examples if not e.response), None)):
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
            return getattr(Dataset, f"from_{reader}")(str(path))
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
    column = _first(row, CHATS)
    if column is not None:
        return _from_chat(row[column], source, number)
    prompt, response = _first(row, PROMPTS), _first(row, RESPONSES)
    if prompt is None:
        raise DataError(
            f"{source} has the columns {', '.join(row)}; expected {' or '.join(CHATS)}, or one of "
            f"{', '.join(PROMPTS)} together with one of {', '.join(RESPONSES)}"
        )
    text = str(row[prompt])
    if row.get("input"):  # Alpaca's second half of an instruction
        text = f"{text}\n\n{row['input']}"
    return Example.of(text, None if response is None else str(row[response]))


def chat(turns: Any, where: str) -> tuple[tuple[str, str], ...]:
    """The (role, content) pairs of a chat, under the names of roles that templates know.

    Raises:
        DataError: if it is not a list of messages, naming the row by `where`.
    """
    try:
        pairs = [(t.get("role") or t["from"], t.get("content") or t["value"]) for t in turns]
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{where}: a chat must be a list of objects with role and content") from error
    return tuple((_ROLES.get(role, role), content) for role, content in pairs)


def _from_chat(turns: Any, source: str, number: int) -> Example:
    pairs = list(chat(turns, f"{source}, row {number}"))
    response = pairs.pop()[1] if pairs and pairs[-1][0] == "assistant" else None
    if not pairs or pairs[-1][0] != "user":
        raise DataError(f"{source}, row {number}: expected a user turn before the last answer, found {pairs[-1:]}")
    return Example(tuple(pairs), response)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)
