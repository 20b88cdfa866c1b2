from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from neurofreeze.console import quiet
from tests import tiny

quiet()
# The machines that run this have few cores, and tests run side by side.
torch.set_num_threads(1)
settings.register_profile("neurofreeze", deadline=None, max_examples=50)
settings.load_profile("neurofreeze")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder small enough to run every stage in seconds."""
    text = (resources.files("neurofreeze.data") / "retail_bank.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line)["response"] for line in text.splitlines()]
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny", rows)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_checkpoint: Path) -> Any:
    """The tokenizer of `tiny_checkpoint`."""
    from neurofreeze.models.load import load_tokenizer

    return load_tokenizer(tiny_checkpoint)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test depends on, or leaves anything in, the user's own caches or run folders."""
    monkeypatch.chdir(tmp_path)
    return
