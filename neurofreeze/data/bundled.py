"""The sets that come with the library, original to it: `bundled:<set>/<split>`.

Harmful requests are requests only; where an answer is needed (alignment, calibration) it is a refusal of the same
category.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from importlib import resources
from itertools import cycle
from typing import Any

from neurofreeze.data.examples import Example
from neurofreeze.errors import DataError

PREFIX = "bundled:"
SETS = {
    "harmful": ("align", "calibration", "evaluation"),
    "lookalikes": ("align", "calibration", "evaluation"),
    "instructions": ("align", "calibration", "evaluation"),
    "retail_bank": ("train", "evaluation"),
}


def load(source: str) -> list[Example]:
    """The examples of `bundled:<set>/<split>`.

    Raises:
        DataError: if there is no such set or split.
    """
    name, _, split = source.removeprefix(PREFIX).partition("/")
    if split not in SETS.get(name, ()):
        known = ", ".join(f"{PREFIX}{name}/{split}" for name, splits in SETS.items() for split in splits)
        raise DataError(f"no bundled data {source!r}; expected one of {known}")
    rows = [row for row in _rows(name) if row["split"] == split]
    if name == "harmful" and split != "evaluation":
        return _with_refusals(rows)
    return [Example.of(row["prompt"], row.get("response")) for row in rows]


def _with_refusals(rows: list[dict[str, Any]]) -> list[Example]:
    refusals: dict[str, list[str]] = defaultdict(list)
    for row in _rows("refusals"):
        refusals[row["category"]].append(row["response"])
    turns = {category: cycle(texts) for category, texts in refusals.items()}
    return [Example.of(row["prompt"], next(turns[row["category"]])) for row in rows]


@cache
def _rows(name: str) -> list[dict[str, Any]]:
    text = (resources.files("neurofreeze.data") / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
