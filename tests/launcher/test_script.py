"""The batch script: as it is for a real GPU cluster, and safe whatever the settings hold."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from neurofreeze.cli import main
from neurofreeze.config.cluster import ClusterConfig
from neurofreeze.config.schema import Config
from neurofreeze.errors import ConfigError, RunError
from neurofreeze.launcher.job import typed
from neurofreeze.launcher.script import render

GOLDEN = Path(__file__).parent / "golden"
# What eight nodes of eight GPUs need; python is named, as this interpreter's path is this machine's.
GPU_CLUSTER = """
name: llama-8b
backend: {name: fsdp2}
training: {batch_size: 64}
alignment: {mode: never}
cluster:
  name: slurm
  nodes: 8
  ranks_per_node: 8
  gpus_per_node: 8
  cpus_per_rank: 12
  memory: 900G
  time: 1-12:00:00
  account: safety
  partition: gpu
  qos: long
  constraint: h100&nvlink
  directives: ["--exclusive", "--exclude=n[17-18]", "--comment=frozen neurons"]
  modules: [cuda/12.8, nccl]
  setup: ['source "$HOME/env.sh"', export NCCL_DEBUG=WARN]
  python: /opt/env/bin/python
  throttle: 2
"""


def config(changes: str = "") -> Config:
    from omegaconf import OmegaConf

    return typed(OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.create(GPU_CLUSTER), OmegaConf.create(changes))))


@pytest.mark.parametrize(
    ("name", "command", "changes", "folder", "numbers"),
    [
        ("gpu_cluster", "train", "", "/scratch/runs/llama-8b", ()),
        ("gpu_cluster_sweep", "run", "", "/scratch/sweeps/llama-8b", range(4)),
        ("gpu_cluster_torchrun", "train", "cluster: {launch: torchrun}", "/scratch/runs/llama-8b", ()),
        (
            "container",
            "train",
            "cluster: {container: apptainer exec --nv 'my images/nf.sif', python: null}",
            "/scratch/runs/c",
            (),
        ),
    ],
)
def test_the_script_of_a_gpu_cluster(
    name: str, command: str, changes: str, folder: str, numbers: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setattr("neurofreeze.launcher.script.__version__", "1.0")
    text = render(command, config(changes), Path(folder), numbers)
    assert text == (GOLDEN / f"{name}.sbatch").read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n"], input=text, text=True, timeout=20, check=False).returncode == 0


def test_no_setting_is_read_as_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the script with srun and scontrol that only show what they get: nothing else may have run."""
    evil = tmp_path / "$(touch evil); 'x' \"y\" `touch evil` %j #z"
    evil.mkdir()
    monkeypatch.chdir(evil)
    cluster = {
        "python": "py'thon; touch evil",
        "account": "a; touch evil $(touch evil)",
        "modules": ["$(touch evil); x"],
        "container": "run '$(touch evil)' --bind=\"a b\"",
        "directives": ["--comment=x; touch evil '$(touch evil)'"],
    }
    text = render(
        "train", typed(json.dumps({"name": "n'; touch evil #", "cluster": {"name": "slurm", **cluster}})), evil
    )
    commands = {"srun": 'printf "%s\\n" "$@" > "$OUT"', "scontrol": "echo n1", "module": "true"}
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path / "words"), "SLURM_JOB_ID": "7"}
    environment["SLURM_JOB_NODELIST"] = "n1"
    subprocess.run(["bash", "-s"], input=text, text=True, env=environment, timeout=20, check=True)
    words = (tmp_path / "words").read_text(encoding="utf-8").splitlines()
    rank = ["-m", "neurofreeze.launcher.rank", str(evil)]
    assert words == ["--kill-on-bad-exit=1", "run", "$(touch evil)", "--bind=a b", "py'thon; touch evil", *rank]
    assert not list(tmp_path.rglob("evil"))
    directives = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(len(words) == 1 for words in directives)  # one option a line, no more smuggled in
    assert [f"--account={cluster['account']}"] in directives


def test_a_folder_that_slurm_would_change_is_refused() -> None:
    with pytest.raises(RunError, match="backslash or control character"):
        render("train", config(), Path("/scratch/a\\b"))
    with pytest.raises(RunError, match="backslash or control character"):
        render("train", config(), Path("/scratch/a\n#SBATCH --uid=0"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"directives": ["--nodes=4"]}, "expected no --nodes, which the launcher sets itself"),
        ({"directives": ["exclusive"]}, "expected options of sbatch as --name=value"),
        ({"directives": ["--exclusive --uid=0"]}, "expected options of sbatch as --name=value"),
        ({"account": "a\n#SBATCH --uid=0"}, "expected values of one line"),
        ({"setup": ["true\x1b"]}, "expected values of one line"),
        ({"partition": "a\\"}, "expected values without a backslash"),
        ({"container": "run 'x"}, "expected words with their quotes closed"),
        ({"time": "soon"}, "expected such as 4:00:00"),
        ({"nodes": 0}, "expected a number above 0"),
        ({"throttle": 0}, "expected a positive number or null"),
        ({"launch": "mpirun"}, "expected srun or torchrun"),
    ],
)
def test_a_wrong_setting_names_itself(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        ClusterConfig(name="slurm", **setting)  # type: ignore[arg-type]


def test_a_dry_run_prints_the_script_without_slurm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    overrides = ["cluster=slurm", "backend=ddp", "cluster.nodes=2", "cluster.ranks_per_node=2", "name=d"]
    assert main(["train", *overrides, "cluster.dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#!/usr/bin/env bash\n# neurofreeze train")
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=2\n" in out
    assert list(Path("runs/d").iterdir()) == []
    assert main(["train", *overrides]) == 1
    assert "no sbatch on this machine; submit where Slurm is installed" in capsys.readouterr().err
    assert list(Path("runs/d").iterdir()) == []
