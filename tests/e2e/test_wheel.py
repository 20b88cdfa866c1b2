"""What is in the wheel: installed in a new environment, away from the checkout, it has its settings and runs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.stages.runs import settings

ROOT = Path(__file__).parents[2]


def run(*words: str | Path, folder: Path) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, which borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "wheels", ROOT, folder=folder)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", folder=folder)
    (wheel,) = (folder / "wheels").glob("neurofreeze-*.whl")
    python = folder / "env" / "bin" / "python"
    run(*pip, "--python", python, "install", "--quiet", "--no-deps", wheel, folder=folder)
    # A folder named in a .pth file is searched; .pth files in it, such as that of an editable install, are not read.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip()
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    where = run(python, "-c", "import neurofreeze; print(neurofreeze.__file__)", folder=folder)
    assert Path(where.strip()).is_relative_to(folder)
    return folder / "env"


@pytest.mark.slow
def test_settings_batch_scripts_and_tasks_come_with_it(environment: Path, tmp_path: Path) -> None:
    command = environment / "bin" / "neurofreeze"
    shown = run(command, "run", "backend=zero3", "--cfg", "job", "--resolve", folder=tmp_path)
    assert "stage3_gather_16bit_weights_on_model_save: true" in shown
    script = run(command, "train", "cluster=slurm", "cluster.dry_run=true", folder=tmp_path)
    assert f"{environment / 'bin' / 'python'} -m neurofreeze.launcher.rank" in script.replace("python3", "python")
    tasks = run(environment / "bin" / "python", "-m", "neurofreeze.evaluation.tasks", folder=tmp_path).strip()
    assert Path(tasks).is_relative_to(environment)
    assert {file.stem for file in Path(tasks).glob("*.yaml")} == {"refusals", "lookalikes", "instructions"}


@pytest.mark.slow
def test_a_run_completes(environment: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    command, folder = environment / "bin" / "neurofreeze", tmp_path / "run"
    run(command, "run", *settings(tiny_checkpoint, folder), "arms=[safety]", folder=tmp_path)
    assert (folder / "report.html").is_file()
    assert "intact" in run(command, "verify", f"hydra.run.dir={folder}", folder=tmp_path)
