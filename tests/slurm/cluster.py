"""A real Slurm cluster of two nodes on this machine: its own keys, ports and folders, gone without a trace afterwards.

Every node is a slurmd in name spaces of its own, so that `n1` and `n2` are distinct hosts, and all that runs on a node
dies with it. Two partitions: `normal`, whose jobs are requeued when `urgent` needs their nodes, with three seconds of
grace. Four CPUs and two GPUs (in name only) a node.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

NODES = {"n1": "127.0.1.1", "n2": "127.0.1.2"}
CLIENT_SECONDS = 20  # for one call of a Slurm client
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "setpriv")

_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={first}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
ReturnToService=2
MailProg=/bin/true
GresTypes=gpu
{nodes}
PartitionName=normal Nodes={names} Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=3
PartitionName=urgent Nodes={names} MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""

# Inside a node's name spaces: its name, what the names of all nodes mean, then slurmd in place of the shell.
_NODE = 'hostname "$1"; mount --bind "$2/hosts" /etc/hosts; exec slurmd -D -N "$1" -f "$2/slurm.conf"'


def missing() -> str | None:
    """Why no cluster can be started here; None if it can."""
    if os.geteuid() != 0:
        return "a Slurm cluster needs root, for the name spaces of its nodes"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"a Slurm cluster needs {', '.join(absent)}" if absent else None


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster.

    Attributes:
        folder: of its files and logs.
        environment: for processes that are to find it with sbatch, squeue ...
    """

    folder: Path
    environment: dict[str, str]

    def call(self, *words: str, check: bool = True) -> str:
        """What a Slurm client prints."""
        done = subprocess.run(
            words, capture_output=True, text=True, env=self.environment, timeout=CLIENT_SECONDS, check=False
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *words: str) -> str:
        """`sbatch` with these words; returns the job's id."""
        return self.call("sbatch", "--parsable", *words)

    def scontrol(self, *words: str) -> str:
        """`scontrol` with these words."""
        return self.call("scontrol", *words)

    def job(self, job_id: str) -> dict[str, str]:
        """What scontrol knows of a job, such as JobState, Restarts, ExitCode."""
        pairs = self.scontrol("show", "job", "--oneliner", job_id).split("\n")[0].split()
        return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}

    def wait_for(self, job_id: str, *states: str, timeout: float = 120) -> dict[str, str]:
        """The job, once it is in one of `states`, such as COMPLETED; fails on time-out or another final state."""
        final = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"} - set(states)
        deadline = time.monotonic() + timeout
        while True:
            job = self.job(job_id)
            if job["JobState"] in states:
                return job
            wrong = job["JobState"] in final or time.monotonic() > deadline
            assert not wrong, f"job {job_id} is {job['JobState']}, not {states}: {job}\n{self.output(job)}"
            time.sleep(0.1)

    def output(self, job: dict[str, str]) -> str:
        """The last that a job wrote."""
        path = Path(job.get("StdOut", ""))
        return path.read_text(encoding="utf-8", errors="replace")[-6000:] if path.is_file() else "(no output)"

    def release(self, job_id: str) -> None:
        """Start a requeued job now; Slurm would hold it for two minutes."""
        self.wait_for(job_id, "PENDING")
        # Nodes refuse a job that starts in the second in which they were told to end it.
        time.sleep(2)
        self.scontrol("update", f"jobid={job_id}", "StartTime=now")

    def processes(self, job_id: str, program: str = "python") -> dict[int, psutil.Process]:
        """Rank -> its process, of a job that runs."""
        found = {}
        for process in psutil.process_iter():
            try:
                environment, words = process.environ(), process.cmdline()
            except psutil.Error:
                continue
            ours = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            if ours and environment.get("SLURM_JOB_ID") == job_id and "RANK" in environment and program in words[0]:
                found[int(environment["RANK"])] = process
        return found

    def clear(self) -> None:
        """Cancel every job and wait until all nodes are free."""
        self.call("scancel", "--user=root", check=False)
        _wait(lambda: self.call("squeue", "--noheader") == "", 30, "jobs that do not end")


@contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Start a cluster and wait until its nodes are idle; everything of it is gone when the block ends."""
    # A short path: munge's socket has room for 108 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        _configure(folder)
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        munged = ("munged", "--foreground", "--force", f"--key-file={folder}/munge.key")
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        stack.enter_context(
            _daemon((*munged, *(f"--{key}={folder / file}" for key, file in files.items())), environment)
        )
        _wait((folder / "munge.socket").exists, 10, "munged did not start")
        stack.enter_context(_daemon(("slurmctld", "-D", "-f", str(folder / "slurm.conf")), environment))
        spaces = ("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        for node in NODES:
            stack.enter_context(_daemon((*spaces, "bash", "-ec", _NODE, "_", node, str(folder)), environment))
        cluster = SlurmCluster(folder, environment)
        _wait(lambda: _idle(cluster), 30, "the nodes did not become idle")
        yield cluster
        cluster.clear()


def _idle(cluster: SlurmCluster) -> bool:
    return cluster.call("sinfo", "--noheader", "-N", "-p", "normal", "-o%t", check=False).split() == ["idle"] * 2


def _configure(folder: Path) -> None:
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in ("slurmctld", *NODES)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        port, *ports = (free.getsockname()[1] for free in sockets)
    nodes = [
        f"NodeName={name} NodeHostname={name} NodeAddr={address} Port={own} CPUs=4 RealMemory=4000 Gres=gpu:2"
        for (name, address), own in zip(NODES.items(), ports, strict=True)
    ]
    conf = _CONF.format(
        folder=folder,
        host=socket.gethostname(),
        port=port,
        first=1 + secrets.randbelow(10**7),  # a job's ranks meet at a port made from it: clusters side by side differ
        nodes="\n".join(nodes),
        names=",".join(NODES),
    )
    (folder / "slurm.conf").write_text(conf, encoding="utf-8")
    (folder / "gres.conf").write_text("Name=gpu File=/dev/tty[0-1]\n", encoding="utf-8")
    hosts = ["127.0.0.1 localhost", f"127.0.0.1 {socket.gethostname()}", *(f"{a} {name}" for name, a in NODES.items())]
    (folder / "hosts").write_text("\n".join(hosts) + "\n", encoding="utf-8")


@contextmanager
def _daemon(words: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    # Killed with the tests' own process too, even if that is killed itself.
    process = subprocess.Popen(
        ("setpriv", "--pdeathsig", "KILL", *words),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        # Politely first: unshare and slurmctld then wait for their own children.
        for one in [*psutil.Process(process.pid).children(), process]:
            one.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=20)


def _wait(condition: Callable[[], bool], seconds: float, failure: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.05)
