from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from neurofreeze.console import quiet
from tests import deepspeed_operators, tiny

quiet()
# A shell that runs the tests in the background has them ignore Ctrl-C, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
deepspeed_operators.use_own_cache()
# The machines that run this have few cores, and tests run side by side.
torch.set_num_threads(1)
settings.register_profile("neurofreeze", deadline=None, max_examples=50)
settings.load_profile("neurofreeze")
# Ranks are copies of a process that has imported what they need: to import it takes longer than most of them run.
multiprocessing.set_start_method("forkserver")
multiprocessing.set_forkserver_preload(["tests.preloaded"])

DEEPSPEED = ("distributed", "integrations", "launcher")  # folders whose slow tests start it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: of two workers none then has minutes left when the other has nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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


@pytest.fixture(scope="session", autouse=True)
def _operators(request: pytest.FixtureRequest) -> None:
    """DeepSpeed's CPU operators are compiled, if a test that may start DeepSpeed is among those to run."""
    if any(item.path.parent.name in DEEPSPEED and item.get_closest_marker("slow") for item in request.session.items):
        deepspeed_operators.build()
        multiprocessing.set_forkserver_preload(["tests.preloaded", "tests.preloaded_deepspeed"])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test depends on, or leaves anything in, the user's own caches or run folders."""
    monkeypatch.chdir(tmp_path)
    return
