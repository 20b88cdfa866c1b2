"""The batch script of a Slurm job, from launch/slurm/job.sbatch.j2."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from neurofreeze._version import __version__
from neurofreeze.config.location import launch_folder
from neurofreeze.config.schema import Config
from neurofreeze.errors import RunError

FILE = "job.sbatch"
LOGS = "logs"  # in the run folder


def render(command: str, config: Config, folder: Path, numbers: Sequence[int] = ()) -> str:
    """The script that runs a command as a batch job, or as one job array.

    Args:
        command: of neurofreeze, such as "train".
        config: settings of the job; of an array, of any of its jobs: only what concerns the cluster is read.
        folder: the absolute path of the run; of an array, the folder that holds the runs, each named by its number.
        numbers: of the array's jobs, consecutive; none for a single job.

    Raises:
        RunError: if a folder's name has a character that Slurm would not take as it is.
    """
    cluster = config.cluster
    for path in (folder, Path.cwd()):
        if "\\" in str(path) or not str(path).isprintable():
            raise RunError(
                f"{str(path)!r} has a backslash or control character, which Slurm changes; rename the folder"
            )
    tasks = cluster.ranks_per_node if cluster.launch == "torchrun" else 1
    cpus = None if cluster.cpus_per_rank is None else cluster.cpus_per_rank * tasks
    log = f"%a/{LOGS}/%x-%A_%a.out" if numbers else f"{LOGS}/%x-%j.out"
    limits = {
        "mem": cluster.memory,
        "time": cluster.time,
        "account": cluster.account,
        "partition": cluster.partition,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
    }
    python = cluster.python or ("python3" if cluster.container else sys.executable)
    return _template().render(
        command=command,
        version=__version__,
        script=folder / FILE,
        folder=folder,
        name=job_name(command, config.name),
        chdir=Path.cwd(),
        output=f"{str(folder).replace('%', '%%')}/{log}",
        array=_array(numbers, cluster.throttle),
        cluster=cluster,
        limits=[(option, value) for option, value in limits.items() if value is not None],
        directives=[_quoted(directive) for directive in cluster.directives],
        cpus_per_task=cpus,
        srun_cpus=f" --cpus-per-task={cpus}" if cpus else "",  # since Slurm 22.05, srun does not take sbatch's
        distributed=config.backend.name != "plain",
        python=shlex.join([*shlex.split(cluster.container or ""), python]),
    )


def job_name(command: str, name: str) -> str:
    """What squeue shows, also part of the log's name."""
    return re.sub(r"[^\w.-]+", "-", f"{command}-{name}", flags=re.ASCII)


def _array(numbers: Sequence[int], throttle: int | None) -> str:
    if not numbers:
        return ""
    return f"{numbers[0]}-{numbers[-1]}" + (f"%{throttle}" if throttle else "")


def _quoted(directive: str) -> str:
    option, equals, value = directive.partition("=")
    return option + equals + (shlex.quote(value) if equals else "")


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(launch_folder() / "slurm"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment.get_template(f"{FILE}.j2")
