"""DeepSpeed's CPU operators, compiled once before any test's ranks need them.

Ranks that compile them at first use wait for each other on lock files that outlive a killed build: whoever comes later
then waits forever. Here they have a cache of their own, in which nothing is built but under a lock that dies with its
holder, so that a lock file found there is a dead build's.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neurofreeze" / "test_operators"
_ROOT = Path(__file__).parents[1]
_LOAD = "from tests import deepspeed_operators; deepspeed_operators.load()"


def use_own_cache() -> None:
    """Make this process and all that it starts look for compiled operators in the tests' own cache."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(CACHE)


def load() -> None:
    """Load them into this process. What is missing is compiled, but under no lock: `build` comes first."""
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    for builder in (ShareMemCommBuilder, FusedAdamBuilder, CPUAdamBuilder):
        builder().load(verbose=False)


def build() -> None:
    """Compile what is missing, a few minutes on a new machine.

    Raises:
        AssertionError: if it does not compile, with the compiler's words.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in CACHE.glob("*/lock"):
            left.unlink()
        # A process of its own: a test's process keeps no operator loaded, and a build that dies takes no test along.
        done = subprocess.run([sys.executable, "-c", _LOAD], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"DeepSpeed's operators do not compile:\n{done.stderr[-4000:]}"


if __name__ == "__main__":  # .ci/run
    use_own_cache()
    build()
