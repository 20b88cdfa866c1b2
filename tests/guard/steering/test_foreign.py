"""Files of repeng and steering-vectors load; what would have to be unpickled does not."""

from __future__ import annotations

import sys
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from neurofreeze.errors import ModelError
from neurofreeze.guard.steering.foreign import write_gguf
from neurofreeze.guard.steering.vector import SteeringVector, VectorConfig

DIRECTIONS = {3: torch.arange(6.0), 5: -torch.ones(6)}


def as_repeng_writes(path: Path, architecture: str = "controlvector") -> Path:
    """The calls of repeng's ControlVector.export_gguf."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "llama")
    writer.add_uint32(f"{architecture}.layer_count", len(DIRECTIONS))
    for layer, direction in DIRECTIONS.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def same(vector: SteeringVector) -> bool:
    return vector.directions.keys() == DIRECTIONS.keys() and all(
        torch.equal(vector.directions[layer], direction) for layer, direction in DIRECTIONS.items()
    )


def test_repeng_s_file_loads(tmp_path: Path) -> None:
    found = SteeringVector.from_pretrained(as_repeng_writes(tmp_path / "v.gguf"))
    assert same(found)
    assert found.config.model_type == "llama"


def test_what_is_written_for_repeng_is_what_it_reads(tmp_path: Path) -> None:
    path = write_gguf(SteeringVector(DIRECTIONS, VectorConfig("llama")), tmp_path / "v.gguf")
    reader = gguf.GGUFReader(path)  # the reads of repeng's ControlVector.import_gguf
    assert bytes(reader.get_field("general.architecture").parts[-1]) == b"controlvector"
    assert bytes(reader.get_field("controlvector.model_hint").parts[-1]) == b"llama"
    for tensor in reader.tensors:
        layer = int(tensor.name.split(".")[1])
        np.testing.assert_array_equal(tensor.data, DIRECTIONS[layer].numpy())
    assert same(SteeringVector.from_pretrained(path))


def test_a_gguf_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GGUF file of 'llama'"):
        SteeringVector.from_pretrained(as_repeng_writes(tmp_path / "m.gguf", "llama"))
    (tmp_path / "no.gguf").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read as a GGUF"):
        SteeringVector.from_pretrained(tmp_path / "no.gguf")
    with pytest.raises(ModelError, match="no file"):
        SteeringVector.from_pretrained(tmp_path / "absent.gguf")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class with the name and the attributes of steering_vectors.SteeringVector, where pickle looks for it."""
    stand_in = make_dataclass("SteeringVector", ["layer_activations", ("layer_type", str, "decoder_block")])
    stand_in.__module__ = "steering_vectors.steering_vector"
    module = ModuleType(stand_in.__module__)
    module.SteeringVector = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "steering_vectors", ModuleType("steering_vectors"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return stand_in


def test_a_saved_steering_vectors_object_loads_without_its_class(
    package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(package(DIRECTIONS), tmp_path / "v.pt")
    torch.save(package(DIRECTIONS, "mlp"), tmp_path / "mlp.pt")
    monkeypatch.delitem(sys.modules, "steering_vectors.steering_vector")
    assert same(SteeringVector.from_pretrained(tmp_path / "v.pt"))
    with pytest.raises(ModelError, match="steers 'mlp'; expected 'decoder_block'"):
        SteeringVector.from_pretrained(tmp_path / "mlp.pt")


def test_its_tensors_alone_load(tmp_path: Path) -> None:
    torch.save(DIRECTIONS, tmp_path / "v.pt")
    assert same(SteeringVector.from_pretrained(tmp_path / "v.pt"))
    torch.save({"layer_activations": DIRECTIONS, "layer_type": "decoder_block"}, tmp_path / "w.pth")
    assert same(SteeringVector.from_pretrained(tmp_path / "w.pth"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds list; expected a dict of layer -> tensor"):
        SteeringVector.from_pretrained(tmp_path / "list.pt")


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    torch.save({3: Bomb(tmp_path / "ran")}, tmp_path / "v.pt")
    with pytest.raises(ModelError, match=r"only unpickling could make.*torch.save\(vector.layer_activations"):
        SteeringVector.from_pretrained(tmp_path / "v.pt")
    assert not (tmp_path / "ran").exists()


def test_a_small_file_cannot_fill_the_memory(tmp_path: Path) -> None:
    torch.save({3: torch.zeros(1).expand(2**36)}, tmp_path / "v.pt")
    assert (tmp_path / "v.pt").stat().st_size < 10_000
    with pytest.raises(ModelError, match="more entries than it stores"):
        SteeringVector.from_pretrained(tmp_path / "v.pt")
