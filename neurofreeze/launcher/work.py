"""What every rank of a job does."""

from __future__ import annotations

from importlib import import_module

from neurofreeze.launcher.job import Job


def work(job: Job) -> int:
    """Run the job's command in this process, as one of its ranks; returns the exit code."""
    from neurofreeze.console import quiet_transformers, say, stage
    from neurofreeze.stages.context import Run
    from neurofreeze.tracking.session import tracked

    run = Run(job.config, job.folder, job.overrides)
    run.data  # noqa: B018  read and checked first: a wrong path must not cost a model's download
    with stage("find the model"):
        origin = run.source.origin
    say(f"model: {job.config.model} ({origin})")
    run.require_space()
    quiet_transformers()
    command = import_module(f"neurofreeze.commands.{job.command}")
    return tracked(run, job.command, lambda: command.work(run, job.settings))
