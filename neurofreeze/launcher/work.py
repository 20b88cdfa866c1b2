"""What every rank of a job does."""

from __future__ import annotations

from importlib import import_module

from neurofreeze.launcher.job import Job
from neurofreeze.launcher.ranks import connected
from neurofreeze.launcher.requeue import kept, leave
from neurofreeze.training.stopping import Stopped, StopSignals


def work(job: Job) -> int:
    """Run the job's command in this process, as one of its ranks; returns the exit code."""
    signals, before = StopSignals(), kept(job.folder)
    with signals.listening():
        try:
            with connected(job.config):
                return _work(job, signals)
        except Stopped as stopped:
            leave(job.config.cluster, stopped, progress=kept(job.folder) != before)
            raise


def _work(job: Job, signals: StopSignals) -> int:
    from neurofreeze.console import quiet_transformers, say, stage
    from neurofreeze.distributed import first_rank
    from neurofreeze.stages.context import Run
    from neurofreeze.tracking.result import write_result
    from neurofreeze.tracking.session import tracked

    run = Run(job.config, job.folder, job.overrides, signals)
    run.data  # noqa: B018  read and checked first: a wrong path must not cost a model's download
    with stage("find the model"):
        origin = first_rank(lambda: run.source.origin)  # where it is downloaded, if it has to be
    say(f"model: {job.config.model} ({origin})")
    first_rank(run.require_space)
    quiet_transformers()
    command = import_module(f"neurofreeze.commands.{job.command}")
    code = tracked(run, job.command, lambda: command.work(run, job.settings))
    write_result(run, job.command, code)
    return code
