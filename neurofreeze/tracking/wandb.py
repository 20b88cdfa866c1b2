"""Weights & Biases: one W&B run a run folder, through the official library; offline where there is no key.

Steps are never passed: the library drops what has a smaller step than before, and each arm trains from step 1. Every
series of rows has a step of its own instead, such as train/safety/global_step.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

from neurofreeze.config.tracker import TrackerConfig
from neurofreeze.console import say
from neurofreeze.files import write_atomically
from neurofreeze.tracking.base import STEP, named, series
from neurofreeze.tracking.redaction import redact

FILE = "wandb.json"
_START_SECONDS = 60.0  # to reach the server, after which the run goes on without it
_FINISH_SECONDS = 300.0  # to upload what is left; the rest stays on the disk for `wandb sync`


class WandB:
    """Mirrors rows into the W&B run of a run folder; a later session in the folder goes on with the same run.

    Args:
        config: project, entity, mode, tags.
        folder: of the run; W&B's files go into a folder in it.
        name: of the run, as W&B shows it.
        group: the sweep that the run is part of, if it is.
        command: shown as the job type.
        settings: of the run as plain containers, without secrets.
    """

    def __init__(
        self, config: TrackerConfig, folder: Path, *, name: str, group: str | None, command: str, settings: Any
    ) -> None:
        import wandb

        self._wandb = wandb
        self._artifacts = config.artifacts
        self._stepped: set[str] = set()
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            id=_id(folder),
            resume="allow",
            name=name,
            group=group,
            job_type=command,
            tags=redact(list(config.tags)),
            config=settings,
            dir=str(folder),
            mode=_mode(config.mode),  # type: ignore[arg-type]
            allow_val_change=True,
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                # Command line, git remote and environment would be read by the library itself, secrets and all.
                x_disable_meta=True,
                disable_git=True,
                init_timeout=_START_SECONDS,
                finish_timeout=_FINISH_SECONDS,
            ),
        )
        offline = f"offline, to be uploaded with `wandb sync {Path(self._run.dir).parent}`"
        say(f"W&B run {self._run.id}: {offline if self._run.offline else self._run.url}")

    def log(self, row: dict[str, Any]) -> None:
        """Log a row under its series' names, in the order of metrics.jsonl."""
        of = series(row)
        if STEP in row and of not in self._stepped:
            self._run.define_metric(f"{of}/{STEP}", hidden=True)
            self._run.define_metric(f"{of}/*", step_metric=f"{of}/{STEP}")
            self._stepped.add(of)
        self._run.log(named(row))

    def artifact(self, name: str, path: Path, kind: str) -> None:
        """Upload a small file or folder, if the settings say so; unchanged content is not uploaded again."""
        if not self._artifacts:
            return
        found = self._wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{self._run.name}-{name}"), type=kind)
        # Immutable: read where it is rather than copied into a folder of the user's home first.
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                name_in = file.name if file == path else file.relative_to(path).as_posix()
                found.add_file(str(file), name=name_in, policy="immutable")
        self._run.log_artifact(found)

    def finish(self, code: int) -> None:
        """Upload what is left and end the session."""
        self._run.finish(exit_code=code)


def _id(folder: Path) -> str:
    """The id of the folder's W&B run, made once, so that a requeued job goes on with its run."""
    path = folder / FILE
    if path.is_file():
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    made = secrets.token_hex(4)
    write_atomically(path, (json.dumps({"id": made}) + "\n").encode())
    return made


def _mode(wanted: str) -> str | None:
    """The library's mode; None for what WANDB_MODE says."""
    import wandb

    if wanted != "auto":
        return wanted
    if os.environ.get("WANDB_MODE"):
        return None
    return "online" if wandb.login(prompt=False) else "offline"
