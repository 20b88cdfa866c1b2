"""A reference on disk is whole and belongs to its model, or it is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from neurofreeze.errors import DataError, MaskError
from neurofreeze.guard.monitor.calibrating import top_scored
from neurofreeze.guard.monitor.reference import Reference
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.verification import loaded_fingerprint
from tests import tiny
from tests.guard.monitor.streams import Stream, mask, reference


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return reference(100).save_pretrained(tmp_path / "reference")


def test_it_comes_back_as_it_was(folder: Path) -> None:
    known, found = reference(100), Reference.from_pretrained(folder, model=tiny.model())
    for name in ("mean", "scale", "edges", "shares", "precision", "held"):
        assert np.array_equal(getattr(found, name), getattr(known, name))
    assert (found.mask, found.pooling, found.made_of) == (known.mask, known.pooling, known.made_of)
    assert found.names[:2] == ("layers.0.attention/2", "layers.1.mlp/3")
    assert not list(folder.glob("*.bin")) + list(folder.glob("*.pkl"))


def test_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(MaskError, match="made for another model"):
        Reference.from_pretrained(folder, model=tiny.model(intermediate_size=72))


def test_other_weights_are_refused_unless_meant(tmp_path: Path) -> None:
    model = tiny.model()
    own = mask().with_config(fingerprint=loaded_fingerprint(model, mask()))
    folder = Reference.fit(Stream(0).draw(60), own).save_pretrained(tmp_path / "reference")
    Reference.from_pretrained(folder, model=model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 40] += 1
    Reference.from_pretrained(folder, model=model)  # not one of the watched
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 5] += 1
    with pytest.raises(MaskError, match="field 'fingerprint'"):
        Reference.from_pretrained(folder, model=model)
    Reference.from_pretrained(folder, model=model, other_weights=True)


def edit(folder: Path, **fields: object) -> None:
    path = folder / "reference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", 1),
        ("pooling", "max"),
        ("made_of", None),
        ("made_of", {"prompts": 50}),
        ("mask", "0" * 64),
        ("sha256", None),
    ],
)
def test_a_malformed_config_is_refused(folder: Path, field: str, value: object) -> None:
    edit(folder, **{field: value})
    with pytest.raises(DataError, match=f"field '{field}'"):
        Reference.from_pretrained(folder)


@pytest.mark.parametrize("field", ["mean", "scale", "edges", "shares", "precision", "held"])
def test_malformed_arrays_are_refused(folder: Path, field: str) -> None:
    path = folder / "reference.safetensors"
    whole = load_file(path)
    for bad in (whole[field].astype(np.float32), whole[field][..., :-1].copy(), whole[field] * np.nan):
        save_file({**whole, field: bad}, path)
        edit(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        with pytest.raises(DataError, match=f"field '{field}'"):
            Reference.from_pretrained(folder)


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-8], lambda content: content[:-1] + bytes([content[-1] ^ 1]), lambda _: b""],
    ids=["cut", "one bit", "empty"],
)
def test_arrays_that_were_changed_or_cut_are_refused(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "reference.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"reference\.safetensors is not the file .* changed or cut"):
        Reference.from_pretrained(folder)


def test_no_reference_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no reference"):
        Reference.from_pretrained(tmp_path)


def test_too_few_or_odd_observations_are_refused() -> None:
    with pytest.raises(DataError, match="found 39 calibration prompts, expected at least 40"):
        Reference.fit(Stream(0).draw(39), mask())
    odd = Stream(0).draw(60)
    odd[3, 3] = np.inf
    with pytest.raises(DataError, match="not finite"):
        Reference.fit(odd, mask())


def test_a_neuron_that_was_always_silent_is_an_alarm_when_it_speaks() -> None:
    observations = Stream(0).draw(200)
    observations[:, 5] = 0
    known = Reference.fit(observations, mask())
    assert np.isfinite(known.held_distances).all()
    awake = observations[:1].copy()
    awake[:, 5] = 0.01
    assert known.distances(known.standardized(awake))[0] > 100 * known.held_distances.max()


def test_the_highest_scores_of_each_kind_are_watched() -> None:
    neuron_map = NeuronMap.of(tiny.config())
    generator = np.random.default_rng(0)
    scores = {n: generator.random(s.neurons).astype(np.float32) for n, s in neuron_map.sites.items()}
    bits = {n: generator.random(s.neurons) < 0.5 for n, s in neuron_map.sites.items()}
    whole = NeuronMask(bits, mask().config, scores)
    chosen = top_scored(whole, neuron_map, 20)
    assert (chosen - whole).count == 0
    for kind in ("attention", "mlp"):
        names = [n for n, s in neuron_map.sites.items() if s.kind == kind]
        of = sum(int(whole.bits[n].sum()) for n in names)
        own = sum(int(chosen.bits[n].sum()) for n in names)
        assert own == round(of * 20 / whole.count) > 0
        best = sorted((float(scores[n][j]) for n in names for j in np.flatnonzero(bits[n])), reverse=True)[:own]
        assert (
            sorted((float(scores[n][j]) for n in names for j in np.flatnonzero(chosen.bits[n])), reverse=True) == best
        )
    assert top_scored(whole, neuron_map, whole.count) is whole
    with pytest.raises(MaskError, match="no scores"):
        top_scored(NeuronMask(bits, mask().config), neuron_map, 20)
    with pytest.raises(MaskError, match="nothing to watch"):
        top_scored(NeuronMask.none(neuron_map), neuron_map, 20)
