"""RunFolder: which stages of a run are complete, with which settings, and the numbers they left."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neurofreeze._version import __version__
from neurofreeze.console import say
from neurofreeze.differences import difference
from neurofreeze.distributed import first_rank, rank
from neurofreeze.errors import RunError
from neurofreeze.files import write_atomically
from neurofreeze.stages.rows import drop_unfinished, next_attempt, read_rows
from neurofreeze.tracking.base import Tracker
from neurofreeze.tracking.result import FILE as RESULT

METRICS = "metrics.jsonl"


class RunFolder:
    """A run's folder on disk.

    Args:
        path: created if missing.
        overwrite: redo a stage that is complete with other settings instead of refusing.

    Attributes:
        tracker: mirrors metrics.jsonl while a command runs.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.path = path
        self.overwrite = overwrite
        self.tracker: Tracker | None = None
        self._told: dict[
            str, dict[str, Any]
        ] = {}  # results that rank 0 told this rank, whose file system may lag behind
        path.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        stage: str,
        settings: dict[str, Any],
        work: Callable[[], dict[str, Any]],
        *outputs: Path,
        together: bool = False,
    ) -> dict[str, Any]:
        """The result of `stage`: from its marker if it is complete with these settings, else by doing `work`.

        Collective: rank 0 looks at the marker and does the work, with the result or the error for all.

        Args:
            stage: its name, which is also the marker's.
            settings: all that the result depends on, JSON-serialisable.
            work: does it and returns a JSON-serialisable result.
            outputs: files or folders it leaves; if one is gone, the stage is done again.
            together: let all ranks do the work, as training needs; the result is rank 0's.

        Raises:
            RunError: if it is complete with other settings and `overwrite` is off, naming the settings that differ.
        """
        result = first_rank(lambda: self._reused(stage, settings, outputs))
        if result is None:
            self._told.pop(stage, None)
            started = time.perf_counter()
            done = work() if together else first_rank(work)
            seconds = round(time.perf_counter() - started, 3)
            result = first_rank(lambda: self._complete(stage, settings, done, seconds))
        if rank() != 0:
            self._told[stage] = result
        return result

    def complete(self, stage: str, settings: dict[str, Any], *outputs: Path) -> dict[str, Any] | None:
        """What a stage left with these settings, None if it is to be done.

        Raises:
            RunError: as `run`.
        """
        marker = self._marker(stage)
        if marker is None or not all(path.exists() for path in outputs):
            return None
        if marker["settings"] == settings:
            result: dict[str, Any] = marker["result"]
            return result
        if not self.overwrite:
            raise RunError(
                f"{self.path} already holds {stage} with other settings ({difference(marker['settings'], settings)}); "
                "give this run a folder of its own with name=..., or redo it with overwrite=true"
            )
        return None

    def _reused(self, stage: str, settings: dict[str, Any], outputs: Sequence[Path]) -> dict[str, Any] | None:
        """The result that is there; None, and no marker, if the stage is to be done."""
        result = self.complete(stage, settings, *outputs)
        if result is not None:
            say(f"{stage}: complete, reused")
            return result
        self._path(stage).unlink(missing_ok=True)
        (self.path / RESULT).unlink(missing_ok=True)  # of a command before; this one may be interrupted
        return None

    def _complete(self, stage: str, settings: dict[str, Any], result: dict[str, Any], seconds: float) -> dict[str, Any]:
        content = {
            "stage": stage,
            "settings": settings,
            "result": result,
            "seconds": seconds,
            "version": __version__,
        }
        text = json.dumps(content, indent=1)
        write_atomically(self._path(stage), f"{text}\n".encode())
        self.log({"stage": stage, "seconds": seconds})
        written: dict[str, Any] = json.loads(text)["result"]
        return written

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a stage left, None if it is not complete."""
        if stage in self._told:
            return self._told[stage]
        marker = self._marker(stage)
        return None if marker is None else marker["result"]

    def settings(self, stage: str) -> dict[str, Any] | None:
        """What a stage was completed with, None if it is not complete."""
        marker = self._marker(stage)
        return None if marker is None else marker["settings"]

    def unfinished(self, stage: str) -> Path:
        """Where a stage that goes on after an interruption keeps what is done, until it is complete."""
        return self._path(stage).with_suffix(".unfinished")

    def required(self, stage: str, command: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """What a stage left.

        Args:
            stage: its name.
            command: that completes it.
            settings: what it must have been completed with; None for whatever it was.

        Raises:
            RunError: if it is not complete, or with other settings, naming the command that completes it.
        """
        result = self.result(stage)
        if result is None:
            raise RunError(f"{self.path} has no complete {stage} stage; run `neurofreeze {command}` first")
        found = settings if stage in self._told else self.settings(stage)  # rank 0 has looked, to tell it
        if settings is not None and found != settings:
            raise RunError(
                f"{self.path} holds {stage} with other settings ({difference(found or {}, settings)}); give those it "
                f"was made with, or make it anew first with `neurofreeze {command}` and overwrite=true"
            )
        return result

    def attempt(self, stage: str, arm: str | None = None) -> Callable[[dict[str, Any]], None]:
        """What logs the rows of one more attempt at a training, each with the attempt's number; see `rows.current`."""
        of = {"stage": stage, **({} if arm is None else {"arm": arm})}
        number = next_attempt(read_rows(self.path / METRICS), of)
        return lambda row: self.log({**of, "attempt": number, **row})

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl, on rank 0; the tracker, if there is one, mirrors it."""
        if rank() != 0:  # to whose file system earlier rows may not have come yet
            return
        row = {"time": round(time.time(), 3), **row}
        drop_unfinished(self.path / METRICS)
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.tracker is not None:
            self.tracker.log(row)

    def require_space(self, needed: int) -> None:
        """Raise RunError unless `needed` bytes are free where the run folder is."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise RunError(
                f"this run needs about {needed / 1e9:.1f} GB in {self.path}, but {free / 1e9:.1f} GB are free; "
                "free some space, or put the run elsewhere with hydra.run.dir=FOLDER"
            )

    def _path(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def _marker(self, stage: str) -> dict[str, Any] | None:
        try:
            content = json.loads(self._path(stage).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunError(f"{self._path(stage)} is not JSON ({error}); delete it to redo the stage") from error
        if not isinstance(content, dict) or not {"settings", "result"} <= content.keys():
            raise RunError(f"{self._path(stage)} has no settings and result; delete it to redo the stage")
        return content


def settings_digest(settings: dict[str, Any]) -> str:
    """A short digest of settings, by which a later stage refers to an earlier one."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
