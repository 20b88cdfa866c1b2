"""What the command line shows while it works: one bar per stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Without markup: settings, folders and errors have brackets of their own, and [/data] would raise an error.
console = Console(highlight=False, markup=False, emoji=False)
_PLAIN_EVERY = 15.0  # seconds between plain lines of one stage


class Stage:
    """The progress of one stage."""

    def __init__(self, name: str, total: int | None, bars: Progress | None) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self._bars = bars
        self._task = bars.add_task(name, total=total) if bars is not None else None
        self._started = self._told = time.monotonic()

    def advance(self) -> None:
        """One more step is done."""
        self.update(self.done + 1, self.total)

    def update(self, done: int, total: int | None) -> None:
        """`done` of `total` steps are done."""
        self.done, self.total = done, total
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._told > _PLAIN_EVERY:
            self._told = time.monotonic()
            left = ""
            if total and done:
                left = f", {(total - done) * (self._told - self._started) / done:.0f} s left"
            console.print(f"{self.name}: {done}/{total or '?'}{left}", soft_wrap=True)


@contextmanager
def stage(name: str, total: int | None = None) -> Iterator[Stage]:
    """Show a stage's progress while the block runs, and how long it took after it."""
    started = time.monotonic()
    if console.is_terminal:
        with _bars() as bars:
            yield Stage(name, total, bars)
    else:
        console.print(f"{name} ...", soft_wrap=True)
        yield Stage(name, total, None)
    say(f"{name}: done in {time.monotonic() - started:.0f} s")


def say(text: str) -> None:
    """One line for the user."""
    console.print(text, soft_wrap=True)


def quiet() -> None:
    """Keep the libraries we use from talking over our progress display. Call it before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # DeepSpeed sets its logger's level when imported; a filter put there before stays. bitsandbytes tells of a kernel
    # that would be faster.
    for name in ("DeepSpeed", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def quiet_transformers() -> None:
    """The part of `quiet` that needs transformers itself."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
