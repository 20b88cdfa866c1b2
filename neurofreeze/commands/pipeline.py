"""What the commands of a run share: settings, the run folder with its resolved.yaml, and the stages in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from neurofreeze.commands.settings import compose
from neurofreeze.config.schema import Config
from neurofreeze.files import write_atomically
from neurofreeze.stages.context import Run


def with_run(command: str, overrides: Sequence[str], work: Callable[[Run, str], int]) -> int:
    """Compose the settings, open the run folder, and call `work(run, settings as YAML)`."""

    def task(config: Config, folder: Path, text: str) -> int:
        from neurofreeze.console import quiet_transformers, say, stage

        run = Run(config, folder, overrides)
        run.data  # noqa: B018  read and checked first: a wrong path must not cost a model's download
        with stage("find the model"):
            origin = run.source.origin
        say(f"model: {config.model} ({origin})")
        run.require_space()
        quiet_transformers()
        code = work(run, text)
        write_atomically(folder / "resolved.yaml", text.encode())
        return code

    return compose(command, overrides, task)
