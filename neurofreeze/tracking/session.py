"""One command's time in a run folder: its rows go to the tracker, and its masks and report when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from neurofreeze.console import say
from neurofreeze.tracking.base import Tracker
from neurofreeze.tracking.making import make
from neurofreeze.training.stopping import Stopped

if TYPE_CHECKING:
    from neurofreeze.stages.context import Run


_STOPPED_SECONDS = 10.0  # that a tracker has to end in a job that a signal has stopped, and that is to be requeued yet


def tracked(run: Run, command: str, work: Callable[[], int]) -> int:
    """Do a command's work and return its exit code; on rank 0 the settings' tracker mirrors what it logs.

    Raises:
        ConfigError: if a package that the tracker needs is not installed.
    """
    from neurofreeze.distributed import rank

    tracker = make(run.config, run.folder.path, command, run.overrides) if rank() == 0 else None
    if tracker is None:
        return work()
    run.folder.tracker = tracker
    code = 1
    try:
        code = work()
        return code
    except Stopped:
        run.folder.tracker = None
        _finish_soon(tracker, code)
        raise
    finally:
        if run.folder.tracker is not None:
            run.folder.tracker = None
            _hand_over(run, tracker)
            tracker.finish(code)


def _finish_soon(tracker: Tracker, code: int) -> None:
    # Uploading may take longer than there is until the job is killed; a later session hands over what this one has not.
    thread = threading.Thread(target=tracker.finish, args=(code,), daemon=True)
    thread.start()
    thread.join(_STOPPED_SECONDS)
    if thread.is_alive():
        say(f"warning: the tracker has not ended within {_STOPPED_SECONDS:.0f} s and is left; metrics.jsonl is whole")


def _hand_over(run: Run, tracker: Tracker) -> None:
    """The masks and the report, as far as there are any."""
    from neurofreeze.stages.report import FILE

    for path in sorted(run.folder.path.glob("selection/*/neuron_mask_config.json")):
        tracker.artifact(f"mask-{path.parent.name}", path.parent, "mask")
    report = run.folder.path / FILE
    if report.is_file():
        tracker.artifact("report", report, "report")
