"""Where a command runs, and on how many ranks: conf/cluster."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Optional

from neurofreeze.config.checks import check

CLUSTERS = ("local", "torchrun", "slurm")
_TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")  # Slurm's: minutes, minutes:seconds, days-hours ...
_DIRECTIVE = re.compile(r"--[a-z][a-z-]*(=.*)?")
# What the script decides itself, or has a setting for.
_OWN = (
    "job-name",
    "chdir",
    "output",
    "error",
    "open-mode",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "cpus-per-task",
    "gpus-per-node",
    "mem",
    "time",
    "account",
    "partition",
    "qos",
    "constraint",
    "requeue",
    "no-requeue",
    "signal",
    "array",
    "parsable",
    "wait",
    "wrap",
)


@dataclass
class ClusterConfig:
    """Nodes, ranks and what the scheduler must know of them."""

    name: str = "local"  # local: in this process; torchrun: ranks on this machine; slurm: a batch job
    nodes: int = 1
    ranks_per_node: int = 1
    launch: str = "srun"  # slurm: srun starts each rank; torchrun: srun starts one torchrun a node
    gpus_per_node: Optional[int] = None  # null: ask for none
    cpus_per_rank: Optional[int] = None
    memory: Optional[str] = None  # of a node, such as 64G
    time: Optional[str] = None  # limit, such as 4:00:00
    account: Optional[str] = None
    partition: Optional[str] = None
    qos: Optional[str] = None
    constraint: Optional[str] = None
    directives: list[str] = field(default_factory=list)  # more of sbatch's options, such as --exclusive
    modules: list[str] = field(default_factory=list)  # for `module load`
    setup: list[str] = field(default_factory=list)  # shell lines before the ranks start, as they are
    container: Optional[str] = None  # words before the ranks' command, such as: apptainer exec --nv image.sif
    python: Optional[str] = None  # the ranks' interpreter; null: this one, in a container python3
    requeue: bool = True  # go on by itself after preemption or the time limit
    signal_seconds: int = 120  # before the time limit, when the job is told to save and requeue
    throttle: Optional[int] = None  # jobs of a sweep that run at a time
    dry_run: bool = False  # print the script, submit nothing
    wait: bool = False  # until the job has ended; a sweep that optimises waits anyway
    poll_seconds: float = 5.0

    def __post_init__(self) -> None:
        check(self.name in CLUSTERS, "cluster.name", self.name, f"one of {', '.join(CLUSTERS)}")
        check(self.launch in ("srun", "torchrun"), "cluster.launch", self.launch, "srun or torchrun")
        for name in ("nodes", "ranks_per_node", "signal_seconds", "poll_seconds"):
            check(getattr(self, name) > 0, f"cluster.{name}", getattr(self, name), "a number above 0")
        for name in ("gpus_per_node", "cpus_per_rank", "throttle"):
            value = getattr(self, name)
            check(value is None or value > 0, f"cluster.{name}", value, "a positive number or null")
        check(self.time is None or bool(_TIME.fullmatch(self.time)), "cluster.time", self.time, "such as 4:00:00")
        for line in self.directives:
            check(bool(_DIRECTIVE.fullmatch(line)), "cluster.directives", line, "options of sbatch as --name=value")
            name = line[2:].partition("=")[0]
            check(name not in _OWN, "cluster.directives", line, f"no --{name}, which the launcher sets itself")
        words = [self.account, self.partition, self.qos, self.constraint, self.memory, self.container, self.python]
        for text in [*words, *self.directives, *self.modules, *self.setup]:
            check(text is None or text.isprintable(), "cluster", text, "values of one line")
        for text in [*words[:5], *self.directives]:
            # sbatch has its own reading of it.
            check(text is None or "\\" not in text, "cluster", text, "values without a backslash")
        check(_splits(self.container), "cluster.container", self.container, "words with their quotes closed")
        script = self.name == "slurm"
        check(script or not self.dry_run, "cluster.dry_run", True, f"false: cluster={self.name} has no script to print")
        check(script or self.nodes == 1, "cluster.nodes", self.nodes, f"1, since cluster is {self.name}")
        alone = self.name == "local" and self.ranks_per_node > 1
        check(not alone, "cluster.ranks_per_node", self.ranks_per_node, "1, since cluster is local; use torchrun")

    @property
    def ranks(self) -> int:
        """Of all nodes together."""
        return self.nodes * self.ranks_per_node


def _splits(words: str | None) -> bool:
    try:
        shlex.split(words or "")
    except ValueError:
        return False
    return True
