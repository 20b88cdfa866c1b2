"""One rank of a job whose second rank fails when it loads the tokenizer to train with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from neurofreeze.errors import ModelError
from neurofreeze.launcher import rank
from neurofreeze.training import fitting


def unreadable(folder: Path) -> Any:
    raise ModelError(f"{folder} cannot be read here")


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        fitting.load_tokenizer = unreadable
    rank.entry()
