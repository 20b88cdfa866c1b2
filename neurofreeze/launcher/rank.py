"""`python -m neurofreeze.launcher.rank FOLDER`: one rank of a job, with RANK, WORLD_SIZE ... in its environment.

It reads the job from its folder; no Hydra runs in it, so that all ranks have the same settings and folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from neurofreeze.console import quiet
from neurofreeze.launcher.job import Job
from neurofreeze.launcher.work import work


def main() -> int:
    """Run the job's command as this rank; returns the exit code."""
    quiet()
    return work(Job.load(Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
