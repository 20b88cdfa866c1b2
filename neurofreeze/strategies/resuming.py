"""Passes over calibration batches that go on where they were interrupted.

What a pass gathers is kept in a folder, in one file a rank: `rank-0.safetensors`, with the tensors of every pass and,
as JSON in its metadata, what they depend on and how many turns each pass has behind it. The file is replaced whole:
once a minute, after the last turn of a pass, and before an interruption takes effect, which a first Ctrl-C, SIGTERM
or SIGUSR1 does when its batch is whole and kept, and a second one at once. Scores are then bit for bit those of a
selection that nothing interrupted.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.distributed.tensor import DTensor

from neurofreeze.console import say
from neurofreeze.data.batches import Batch
from neurofreeze.distributed import gather, rank
from neurofreeze.errors import NeuroFreezeWarning
from neurofreeze.files import write_atomically
from neurofreeze.strategies.weights import Offloaded, parameters, whole

Turn = tuple[Batch, bool]  # a batch of this rank, and whether it counts

_EVERY = 60.0  # seconds between writing what was gathered
_SHARE = 0.05  # of the time, at most, is spent on that
_KEY = "neurofreeze"


class Resumable(Protocol):
    """Something gathered batch by batch."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was gathered so far, on the CPU."""
        ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the place of what was gathered here."""
        ...


class Parts:
    """What several gather, as one; names hold no "/"."""

    def __init__(self, parts: Mapping[str, Resumable]) -> None:
        self.parts = parts

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What all have gathered, by "name/key"."""
        return {
            f"{name}/{key}": tensor for name, part in self.parts.items() for key, tensor in part.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give each its own."""
        for name, own in _by_name(state, self.parts).items():
            self.parts[name].load_state_dict(own)


class Kept:
    """What a selection has gathered so far, in a folder.

    Args:
        folder: created when there is something to keep.
        depends: all that it depends on, JSON-serialisable. What another selection has left there is not used.
    """

    def __init__(self, folder: Path, depends: Mapping[str, Any]) -> None:
        self.path = folder / f"rank-{rank()}.safetensors"
        self.depends = dict(depends)
        self.done: dict[str, int] = {}
        self._finished: dict[str, dict[str, torch.Tensor]] = {}
        self._due = time.monotonic() + _EVERY
        why_not = self._read()
        # Not one rank alone, or they would part.
        usable = all(found is None for found in gather(why_not))
        if not usable:
            self.done, self._finished = {}, {}
        if why_not:
            warnings.warn(
                f"{self.path} was left by another selection ({why_not}); starting from the first batch",
                NeuroFreezeWarning,
                stacklevel=3,
            )

    def restore(self, name: str, state: Resumable) -> int:
        """Give a pass what it had gathered; returns how many turns it had behind it."""
        if name in self._finished:
            state.load_state_dict(self._finished[name])
        return self.done.get(name, 0)

    def advance(self, name: str, done: int, state: Resumable, now: bool) -> None:
        """A pass has one more turn behind it. Write if it is time to, or `now`."""
        self.done[name] = done
        if now or time.monotonic() > self._due:
            self.write(name, state)

    def write(self, name: str, state: Resumable) -> None:
        """Replace the file by what this pass has gathered, and those before it."""
        started = time.monotonic()
        self._finished[name] = state.state_dict()
        tensors = {f"{own}/{key}": tensor for own, found in self._finished.items() for key, tensor in found.items()}
        content = {"depends": self.depends, "done": self.done}
        write_atomically(self.path, save(tensors, {_KEY: json.dumps(content)}))
        ended = time.monotonic()
        self._due = ended + max(_EVERY, (ended - started) / _SHARE)

    def remove(self) -> None:
        """Nothing is left to go on with: the scores are there."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()

    def _read(self) -> str | None:
        """Take in the file; returns why it is not used, None if it is or there is none."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                content = json.loads((file.metadata() or {})[_KEY])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            depends, self.done = content["depends"], content["done"]
            self._finished = _by_name(tensors, self.done)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            return f"it cannot be read: {error!r}"
        return None if depends == self.depends else _difference(depends, self.depends)


class Turns:
    """Takes the turns of one pass: tells progress after each, and keeps what was gathered, if anything is to be kept.

    Args:
        progress: called after each turn, and at once for those of an earlier run.
        kept: where to go on from.
        name: the pass's in what is kept; holds no "/".
    """

    def __init__(
        self, progress: Callable[[], None] | None = None, kept: Kept | None = None, name: str = "batches"
    ) -> None:
        self.progress = progress or (lambda: None)
        self.kept = kept
        self.name = name

    def __call__(self, turns: Iterable[Turn], state: Resumable | None = None) -> Iterator[Turn]:
        """The turns that are left. Collective where something is kept.

        Args:
            turns: all turns of this rank.
            state: what the pass gathers, whole whenever a turn is asked for; None if it always starts from its
                first batch.
        """
        if self.kept is None or state is None:
            for turn in turns:
                yield turn
                self.progress()
            return
        yield from self._kept(self.kept, list(turns), state)

    def _kept(self, kept: Kept, turns: Sequence[Turn], state: Resumable) -> Iterator[Turn]:
        own = kept.restore(self.name, state)
        # Where every pass needs all ranks, those ahead go along with the one furthest behind.
        first = min(gather(own))
        if first and rank() == 0:
            say(f"{self.name}: going on after batch {first} of {len(turns)}")
        for _ in range(first):
            self.progress()
        for index in range(first, len(turns)):
            batch, counts = turns[index]
            with _once_whole() as came:
                yield batch, counts and index >= own
                kept.advance(self.name, max(own, index + 1), state, now=bool(came) or index + 1 == len(turns))
            try:
                self.progress()
            except BaseException:
                kept.write(self.name, state)
                raise


def dependencies(
    model: Any, strategies: Sequence[Any], layout: str, data: Sequence[Mapping[str, Sequence[Batch]]], **options: Any
) -> dict[str, Any]:
    """What the statistics of a selection depend on, for `Kept`.

    Args:
        model: the model; what this rank holds of its weights counts.
        strategies: with a `repr` that shows their options.
        layout: the digest of its neurons.
        data: the batches of each calibration set, for all strategies that read others one after the other.
        options: more that it depends on, which a message can name.
    """
    from neurofreeze import __version__

    return {
        "library_version": __version__,
        "torch": torch.__version__,
        "ranks": len(gather(None)),
        "strategies": ", ".join(repr(strategy) for strategy in strategies),
        "layout": layout,
        "model": _weights_digest(model),
        "calibration data": _data_digest(data),
        **options,
    }


def _weights_digest(model: Any) -> str:
    """SHA-256 over an exact sum of every parameter's bits: tells checkpoints apart, at the cost of reading them."""
    h = hashlib.sha256()
    for name, parameter in parameters(model).items():
        if isinstance(parameter, Offloaded):
            held = whole(parameter)
        elif isinstance(parameter, DTensor):
            held = cast(DTensor, parameter.detach()).to_local()
        else:
            held = getattr(parameter, "ds_tensor", parameter).detach()
        bits = held.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[held.element_size()])
        h.update(f"{name} {held.dtype} {tuple(held.shape)} {int(bits.sum(dtype=torch.int64))}\n".encode())
    return h.hexdigest()


def _data_digest(data: Sequence[Mapping[str, Sequence[Batch]]]) -> str:
    h = hashlib.sha256()
    for sets in data:
        for name, batches in sets.items():
            for batch in batches:
                h.update(f"{name} {batch.indices} {tuple(batch.input_ids.shape)}".encode())
                for tensor in batch[1:]:
                    h.update(tensor.cpu().numpy().tobytes())
    return h.hexdigest()


def _by_name(state: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for key, tensor in state.items():
        name, _, rest = key.partition("/")
        found[name][rest] = tensor
    return found


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    digests = ("layout", "model", "calibration data")
    return "; ".join(
        f"its {key} differs" if key in digests else f"{key} was {old.get(key)}, is {new.get(key)}" for key in differing
    )


@contextmanager
def _once_whole() -> Iterator[list[int]]:
    """Signals to stop take effect at the end of the block; a second one, or an error in the block, ends it at once.

    Yields the signals that came.
    """
    came: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            if signal.getsignal(number) is not None:  # None: not Python's, and could not be put back
                before[number] = signal.signal(number, note)
    try:
        yield came
    finally:
        restore()
    if came:
        signal.raise_signal(came[0])
