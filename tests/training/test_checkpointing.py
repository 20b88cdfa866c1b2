"""Checkpoints: whatever happens while one is saved, the newest that counts is whole, and belongs to the fine-tune."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.errors import RunError
from neurofreeze.training.checkpointing import MARKER, Checkpoints, Identity, take_newest

IDENTITY = Identity({"seed": 0, "training": {"steps": 9, "optimizer": "adamw"}})
FILES = {"model.safetensors": 4096, "trainer_state.json": 100, "shards/rank_0.pt": 64, "shards/rank_1.pt": 64}


def save(workspace: str | Path, step: int, identity: Identity = IDENTITY) -> None:
    """What a trainer does at a step, in one process."""
    checkpoints = Checkpoints(Path(workspace), identity)
    folder = checkpoints.saving / f"checkpoint-{step}"
    for name, size in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))
    checkpoints.publish(step)


def steps(workspace: Path) -> list[str]:
    return sorted(path.name for path in workspace.rglob("checkpoint-*"))


def test_the_newest_is_taken_and_the_one_before_is_gone(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    found = take_newest(tmp_path, IDENTITY)
    assert found is not None
    assert (found.step, found.folder.name, found.identity) == (10, "checkpoint-10", IDENTITY)
    assert steps(tmp_path) == ["checkpoint-10"]
    assert sorted(found.folder.rglob("*.*")) == sorted(found.folder / name for name in (*FILES, MARKER))


def test_where_nothing_was_saved_there_is_none(tmp_path: Path) -> None:
    assert take_newest(tmp_path / "absent", IDENTITY) is None


def killed(workspace: Path, moment: int) -> bool:
    """Save step 2 in a process that dies at its Nth touch of the workspace; False if it was done before that."""
    child = os.fork()
    if child == 0:
        left = moment

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in ("open", "os.rename", "os.remove", "os.rmdir") and str(workspace) in str(arguments[0]):
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(die)
        save(workspace, 2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.slow
def test_a_job_killed_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    taken = []
    for moment in range(100):
        workspace = tmp_path / str(moment)
        save(workspace, 1)
        before = (workspace / "checkpoint-1" / "model.safetensors").read_bytes()
        died = killed(workspace, moment)
        found = take_newest(workspace, IDENTITY)
        assert found is not None, f"nothing is left of a job killed at moment {moment}"
        taken.append(found.step)
        if found.step == 1:
            assert (found.folder / "model.safetensors").read_bytes() == before
            assert steps(workspace) == ["checkpoint-1"]
        if not died:
            assert steps(workspace) == ["checkpoint-2"]
            break
    assert not died
    assert taken == sorted(taken)
    assert set(taken[:-1]) == {1, 2}, "killed before the marker was there, and after"


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 4000)


def remove_a_shard(folder: Path) -> None:
    (folder / "shards" / "rank_1.pt").unlink()


def remove_the_marker(folder: Path) -> None:
    (folder / MARKER).unlink()


def cut_the_marker(folder: Path) -> None:
    os.truncate(folder / MARKER, 50)


def change_the_marker(folder: Path) -> None:
    marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    marker["settings"]["seed"] = 1
    (folder / MARKER).write_text(json.dumps(marker), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, "model.safetensors has 4,000 bytes, not 4,096"),
        (remove_a_shard, "shards/rank_1.pt is missing"),
        (remove_the_marker, "it has no complete.json: saving it was interrupted"),
        (cut_the_marker, "its complete.json cannot be read"),
        (change_the_marker, "the digest in its complete.json is not that of the settings there"),
    ],
)
def test_what_is_not_whole_is_removed_and_the_one_before_taken(
    spoil: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a", 1)
    save(tmp_path / "b", 2)
    (tmp_path / "b" / "checkpoint-2").rename(tmp_path / "a" / "checkpoint-2")
    spoil(tmp_path / "a" / "checkpoint-2")
    found = take_newest(tmp_path / "a", IDENTITY)
    assert found is not None
    assert found.step == 1
    out = capsys.readouterr().out
    assert "checkpoint-2 is not a whole checkpoint" in out
    assert said in out
    assert steps(tmp_path / "a") == ["checkpoint-1"]


def test_one_that_cannot_be_read_for_now_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def stale(*_: Any, **__: Any) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", stale)
        with pytest.raises(RunError, match=r"cannot be read .*Stale file handle"):
            take_newest(tmp_path, IDENTITY)
    assert take_newest(tmp_path, IDENTITY) is not None


def test_one_of_other_settings_is_refused_and_stays(tmp_path: Path) -> None:
    save(tmp_path, 3)
    other = Identity({"seed": 0, "training": {"steps": 9, "optimizer": "sgd"}})
    with pytest.raises(RunError, match=r"\(training\.optimizer was 'adamw', is 'sgd'\).*overwrite=true"):
        take_newest(tmp_path, other)
    assert take_newest(tmp_path, IDENTITY) is not None


def test_overwrite_removes_one_of_other_settings_but_goes_on_from_one_of_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 3)
    assert take_newest(tmp_path, IDENTITY, overwrite=True) is not None
    assert take_newest(tmp_path, replace(IDENTITY, settings={"seed": 1}), overwrite=True) is None
    assert "seed was 0, is 1" in capsys.readouterr().out
    assert steps(tmp_path) == []


def test_one_of_another_format_is_refused_and_stays(tmp_path: Path) -> None:
    save(tmp_path, 3)
    marker = tmp_path / "checkpoint-3" / MARKER
    marker.write_text(marker.read_text(encoding="utf-8").replace('"format": 1', '"format": 2'), encoding="utf-8")
    with pytest.raises(RunError, match=r"has format 2, expected 1: it was saved by neurofreeze .*go on with that"):
        take_newest(tmp_path, IDENTITY)
    assert marker.exists()


@pytest.mark.parametrize(
    ("saved", "wanted", "said"),
    [
        (("zero2", 4), ("zero2", 2), r"shards for 4 ranks, which DeepSpeed cannot load on 2; go on with as many ranks"),
        (("zero3", 2), ("zero2", 2), r"saved under backend=zero3, which backend=zero2 cannot load"),
        (("fsdp2", 2), ("ddp", 2), r"saved under backend=fsdp2, which backend=ddp cannot load"),
        (("fsdp2", 4), ("fsdp2", 2), None),
        (("ddp", 4), ("ddp", 2), None),
        (("ddp", 2), ("plain", 1), None),
        (("zero2", 4), ("zero2", 4), None),
    ],
)
def test_what_an_engine_cannot_load_is_refused(
    saved: tuple[str, int], wanted: tuple[str, int], said: str | None, tmp_path: Path
) -> None:
    save(tmp_path, 3, Identity(IDENTITY.settings, *saved))
    identity = Identity(IDENTITY.settings, *wanted)
    if said is None:
        assert take_newest(tmp_path, identity) is not None
    else:
        with pytest.raises(RunError, match=said):
            take_newest(tmp_path, identity)
        assert steps(tmp_path) == ["checkpoint-3"]
