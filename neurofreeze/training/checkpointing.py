"""Checkpoints of a fine-tune that are whole or do not count, and the one to go on from.

A checkpoint is written into a folder that is not yet one, by every rank. Once all have written, it is flushed to the
disk and renamed, and its marker, which lists what it consists of, is written last; what came before stays until then.
So a job may be killed at any moment: the newest checkpoint with a marker is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neurofreeze._version import __version__
from neurofreeze.console import say
from neurofreeze.differences import difference
from neurofreeze.distributed import all_or_none, gather, rank
from neurofreeze.errors import RunError
from neurofreeze.files import sync, sync_tree, write_atomically

MARKER = "complete.json"
FORMAT = 1

_PREFIX = "checkpoint-"
# Whose checkpoints hold the whole model and optimizer in files that each other's trainer reads.
_WHOLE = ("plain", "ddp")


@dataclass(frozen=True)
class Identity:
    """Which fine-tune a checkpoint belongs to.

    Attributes:
        settings: all that its result depends on, JSON-serialisable.
        backend: how its ranks share the model, as in conf/backend.
        ranks: how many there are.
    """

    settings: dict[str, Any]
    backend: str = "plain"
    ranks: int = 1

    @property
    def digest(self) -> str:
        """Of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole."""

    folder: Path
    step: int
    identity: Identity


class Checkpoints:
    """The checkpoints of one fine-tune. Its methods are collective: every rank must call them.

    Args:
        workspace: folder of the fine-tune, which all ranks see.
        identity: of the fine-tune.
    """

    def __init__(self, workspace: Path, identity: Identity) -> None:
        self.workspace = workspace
        self.identity = identity

    @property
    def saving(self) -> Path:
        """Where the trainer writes checkpoint-N, to be published."""
        return self.workspace / "saving"

    def newest(self, overwrite: bool = False) -> Checkpoint | None:
        """The checkpoint to go on from, None to begin; what cannot be gone on from is removed, as for `take_newest`."""
        found = None
        with all_or_none("looking for a checkpoint"):
            if rank() == 0:
                self.saving.mkdir(parents=True, exist_ok=True)
                found = take_newest(self.workspace, self.identity, overwrite)
        # Rank 0's answer: other nodes may not see yet what it has removed.
        return gather(found)[0]

    def publish(self, step: int) -> None:
        """Make a checkpoint of what every rank has written to `saving`, and remove the one before."""
        written = self.saving / f"{_PREFIX}{step}"
        gather(None)  # every rank has written
        with all_or_none(f"saving the checkpoint of step {step}"):
            # What is not on the disk yet is in the memory of the node that wrote it.
            if os.environ.get("LOCAL_RANK", "0") == "0":
                sync_tree(written)
        with all_or_none(f"saving the checkpoint of step {step}"):
            if rank() == 0:
                publish(written, self.workspace, Checkpoint(self.workspace / written.name, step, self.identity))


def publish(written: Path, workspace: Path, checkpoint: Checkpoint) -> None:
    """Turn the flushed folder `written` into `checkpoint`, then remove older ones.

    Safe at every point: until the marker is there, the checkpoint before is the newest that is whole.
    """
    target = checkpoint.folder
    if (target / MARKER).exists():  # the same step of the same fine-tune, saved before
        shutil.rmtree(written)
        return
    written.rename(target)
    sync(workspace)
    content = {
        "format": FORMAT,
        "version": __version__,
        "step": checkpoint.step,
        "digest": checkpoint.identity.digest,
        **asdict(checkpoint.identity),
        "files": {path.relative_to(target).as_posix(): path.stat().st_size for path in _files(target)},
    }
    write_atomically(target / MARKER, (json.dumps(content, indent=1) + "\n").encode())
    for folder in workspace.glob(f"{_PREFIX}*"):
        if folder != target:
            _remove(folder)


def take_newest(workspace: Path, identity: Identity, overwrite: bool = False) -> Checkpoint | None:
    """The newest whole checkpoint in `workspace`; those that are not whole are removed, which is said.

    Args:
        workspace: of the fine-tune.
        identity: of the fine-tune that wants to go on.
        overwrite: remove checkpoints of other settings instead of refusing to begin anew.

    Raises:
        RunError: if it belongs to other settings, naming those that differ, or cannot be loaded on these ranks.
    """
    folders = [*workspace.glob(f"{_PREFIX}*"), *workspace.glob(f"saving/{_PREFIX}*")]
    found = [checkpoint for checkpoint in map(_whole, folders) if checkpoint is not None]
    if not found:
        return None
    newest = max(found, key=lambda checkpoint: checkpoint.step)
    if newest.identity.digest != identity.digest:
        differs = difference(newest.identity.settings, identity.settings)
        if not overwrite:
            raise RunError(
                f"{newest.folder} was left by a fine-tune with other settings ({differs}); go on with those it had, "
                "give this run a folder of its own with name=..., or begin anew with overwrite=true"
            )
        say(f"{newest.folder} was left by a fine-tune with other settings ({differs}); removed, as overwrite=true asks")
        for checkpoint in found:
            _remove(checkpoint.folder)
        return None
    _require_loadable(newest, identity)
    return newest


class _NotWholeError(Exception):
    pass


def _whole(folder: Path) -> Checkpoint | None:
    try:
        return _read(folder)
    except _NotWholeError as error:
        say(f"{folder} is not a whole checkpoint ({error}); removed")
        _remove(folder)
        return None


def _read(folder: Path) -> Checkpoint:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if marker["format"] != FORMAT:
            raise RunError(
                f"{folder} has format {marker['format']}, expected {FORMAT}: it was saved by neurofreeze "
                f"{marker['version']}, this is {__version__}; go on with that version"
            )
        identity = Identity(marker["settings"], marker["backend"], marker["ranks"])
        step, digest, files = int(marker["step"]), str(marker["digest"]), dict(marker["files"])
    except FileNotFoundError:
        raise _NotWholeError(f"it has no {MARKER}: saving it was interrupted") from None
    except OSError as error:  # of a file system that may be well again soon: no reason to remove what was saved
        raise RunError(f"{folder / MARKER} cannot be read ({error}); run the command again once it can") from error
    except (ValueError, TypeError, KeyError) as error:
        raise _NotWholeError(f"its {MARKER} cannot be read: {error!r}") from error
    if digest != identity.digest:
        raise _NotWholeError(f"the digest in its {MARKER} is not that of the settings there")
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            raise _NotWholeError(f"{name} is missing")
        if path.stat().st_size != size:
            raise _NotWholeError(f"{name} has {path.stat().st_size:,} bytes, not {size:,}")
    return Checkpoint(folder, step, identity)


def _require_loadable(checkpoint: Checkpoint, identity: Identity) -> None:
    """Before a model is loaded: engines notice late, or not at all."""
    was = checkpoint.identity
    if was.backend != identity.backend and not {was.backend, identity.backend} <= set(_WHOLE):
        raise RunError(
            f"{checkpoint.folder} was saved under backend={was.backend}, which backend={identity.backend} cannot load; "
            f"go on with backend={was.backend}, or begin anew in another folder with name=..."
        )
    if was.ranks != identity.ranks and was.backend.startswith("zero"):
        raise RunError(
            f"{checkpoint.folder} holds the optimizer in shards for {was.ranks} ranks, which DeepSpeed cannot load on "
            f"{identity.ranks}; go on with as many ranks as before, or begin anew in another folder with name=..."
        )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _remove(folder: Path) -> None:
    """Remove a checkpoint; if that is interrupted, what is left is not taken for whole."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
