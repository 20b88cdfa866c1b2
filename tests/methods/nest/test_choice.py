"""Which rows get which vector: numbering, files, the mask of what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from neurofreeze.errors import ModelError
from neurofreeze.methods.nest.choice import Rows, Updates, choose
from neurofreeze.methods.nest.rows import SafetyRows
from neurofreeze.neurons import NeuronMap
from tests import tiny

GATE, UP = "model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"


def rows(*pairs: tuple[int, int]) -> Rows:
    return Rows(*(np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True)))


@pytest.fixture
def updates() -> Updates:
    return Updates({GATE: rows((3, 0), (5, 1), (60, 0)), UP: rows((5, 0))})


def profiles(groups: list[int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(max(groups) + 1, 9))[groups] + 0.01 * rng.normal(size=(len(groups), 9))


def test_the_rows_of_a_cluster_share_a_vector() -> None:
    found = [
        SafetyRows(GATE, np.array([2, 4, 7, 9, 30]), profiles([0, 1, 0, 1, 0])),
        SafetyRows(UP, np.array([1]), profiles([0])),
    ]
    updates = choose(found)
    assert updates.by_weight[GATE].rows.tolist() == [2, 4, 7, 9, 30]
    assert updates.by_weight[GATE].vectors.tolist() == [0, 1, 0, 1, 0]
    assert updates.by_weight[UP].vectors.tolist() == [0]
    assert (updates.rows, updates.vectors) == (6, 3)
    assert updates.parameters(NeuronMap.of(tiny.config())) == 3 * 36


def test_unshared_rows_have_a_vector_each() -> None:
    updates = choose([SafetyRows(GATE, np.array([2, 4, 7]), profiles([0, 0, 0]))], share=False)
    assert updates.by_weight[GATE].vectors.tolist() == [0, 1, 2]


def test_projections_fused_in_one_weight_share_no_vector() -> None:
    fused = "model.layers.0.mlp.gate_up_proj.weight"
    found = [
        SafetyRows(fused, np.array([2, 4, 7, 9]), profiles([0, 1, 0, 1])),
        SafetyRows(fused, np.array([72, 74, 77, 79]), profiles([0, 0, 1, 1])),
    ]
    (own,) = choose(found).by_weight.values()
    assert own.rows.tolist() == [2, 4, 7, 9, 72, 74, 77, 79]
    assert own.vectors.tolist() == [0, 1, 0, 1, 2, 2, 3, 3]


def test_untouched_are_the_neurons_none_of_whose_rows_has_a_vector(updates: Updates) -> None:
    mask = updates.untouched(NeuronMap.of(tiny.config()))
    touched = {name: np.flatnonzero(~bits).tolist() for name, bits in mask.bits.items()}
    assert touched == {
        "layers.0.attention": [],
        "layers.0.mlp": [3, 5, 60],
        "layers.1.attention": [],
        "layers.1.mlp": [5],
    }


def test_a_row_of_a_fused_weight_touches_the_neuron_it_belongs_to() -> None:
    neuron_map = NeuronMap.of(tiny.config("phi3"))
    updates = Updates({"model.layers.1.mlp.gate_up_proj.weight": rows((4, 0), (72, 1))})
    (bits,) = (bits for name, bits in updates.untouched(neuron_map).bits.items() if not bits.all())
    assert np.flatnonzero(~bits).tolist() == [2, 4]


def test_what_is_saved_is_loaded(updates: Updates, tmp_path: Path) -> None:
    updates.save(tmp_path / "updates.safetensors")
    found = Updates.load(tmp_path / "updates.safetensors")
    assert found.digest == updates.digest
    assert found.by_weight.keys() == updates.by_weight.keys()
    for name, own in found.by_weight.items():
        np.testing.assert_array_equal(own.rows, updates.by_weight[name].rows)
        np.testing.assert_array_equal(own.vectors, updates.by_weight[name].vectors)


def test_the_digest_tells_rows_and_vectors_apart(updates: Updates) -> None:
    others = [
        Updates({GATE: rows((3, 0), (5, 1), (60, 1)), UP: rows((5, 0))}),
        Updates({GATE: rows((3, 0), (5, 1), (61, 0)), UP: rows((5, 0))}),
        Updates({GATE: rows((3, 0), (5, 1), (60, 0))}),
    ]
    assert len({updates.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays: arrays.pop(f"{GATE}.vectors"),
        lambda arrays: arrays.update({"more": np.zeros(3)}),
        lambda arrays: arrays.update({f"{GATE}.rows": np.array([5, 3, 60])}),
        lambda arrays: arrays.update({f"{GATE}.rows": np.array([3, 3, 60])}),
        lambda arrays: arrays.update({f"{GATE}.rows": np.array([-1, 3, 60])}),
        lambda arrays: arrays.update({f"{GATE}.rows": np.array([3, 5])}),
        lambda arrays: arrays.update({f"{GATE}.rows": np.array([3.0, 5.0, 60.0])}),
        lambda arrays: arrays.update({f"{GATE}.vectors": np.array([0, 2, 0])}),
        lambda arrays: arrays.update({f"{GATE}.vectors": np.array([0, -1, 0])}),
        lambda arrays: arrays.clear(),
    ],
)
def test_a_spoilt_file_is_refused(spoil: object, updates: Updates, tmp_path: Path) -> None:
    path = tmp_path / "updates.safetensors"
    updates.save(path)
    arrays = load_file(path)
    spoil(arrays)  # type: ignore[operator]
    save_file(arrays, path)
    with pytest.raises(ModelError):
        Updates.load(path)


def test_no_file_and_no_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="select them again"):
        Updates.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("rows")
    with pytest.raises(ModelError, match="select them again"):
        Updates.load(tmp_path / "text")


@pytest.mark.parametrize("by_weight", [{"model.layers.0.mlp.gate_proj": rows((1, 0))}, {GATE: rows((70, 0))}])
def test_updates_of_another_model_are_refused(by_weight: dict[str, Rows]) -> None:
    with pytest.raises(ModelError, match="belong to another one"):
        Updates(by_weight).check(NeuronMap.of(tiny.config()))
