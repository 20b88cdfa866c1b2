"""What checkpoints carry: it comes back whole, or is refused with a reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from neurofreeze import FreezeError, MaskError, NeuronMask, freeze
from neurofreeze.neurons import NeuronMap
from neurofreeze.record import KEY, FreezeRecord
from tests import reference, tiny
from tests.reference import adamw, assert_frozen, assert_same, mask_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def mask() -> NeuronMask:
    drawn = NeuronMask.random(NeuronMap.of(tiny.config()), 0.3, seed=2)
    return drawn.with_config(model="org/tiny", strategy={"name": "wifv"}, calibration={"harmful": "d1"})


def test_a_record_comes_back_as_it_was_written(mask: NeuronMask) -> None:
    found = FreezeRecord.of(FreezeRecord(mask, "0123456789abcdef").state_dict())
    assert found.fingerprint == "0123456789abcdef"
    assert found.mask == mask
    assert found.mask.config == mask.config
    assert all(np.array_equal(found.mask.bits[name], mask.bits[name]) for name in mask.bits)


def test_a_record_is_one_json_text_beside_whatever_else_the_state_holds(mask: NeuronMask) -> None:
    state = {"epoch": 3, **FreezeRecord(mask, "0" * 16).state_dict()}
    assert isinstance(json.loads(state[KEY]), dict)
    assert NeuronMask.from_state_dict(state) == mask


def damaged(mask: NeuronMask, change: Callable[[dict[str, Any]], None]) -> dict[str, str]:
    content = json.loads(FreezeRecord(mask, "0" * 16).state_dict()[KEY])
    change(content)
    return {KEY: json.dumps(content)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.update(version=2), FreezeError, "has version 2, expected 1"),
        (lambda c: c.pop("fingerprint"), FreezeError, "damaged"),
        (lambda c: c.pop("bits"), FreezeError, "damaged"),
        (lambda c: c.update(bits=3), FreezeError, "damaged"),
        (lambda c: c["bits"].update({"layers.0.mlp": "!"}), FreezeError, "damaged"),
        (lambda c: c["bits"].update({"layers.0.mlp": "AA=="}), MaskError, r"field 'bits.layers.0.mlp'"),
        (lambda c: c["bits"].pop("layers.0.mlp"), FreezeError, "bits and config name other sites"),
        (lambda c: c["config"].pop("layout"), MaskError, "field 'layout': missing, in the checkpoint's mask"),
        (lambda c: c.update(config=[]), MaskError, "holds a list, expected an object"),
    ],
)
def test_a_damaged_record_is_refused(
    mask: NeuronMask, change: Callable[[dict[str, Any]], None], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FreezeRecord.of(damaged(mask, change))


@pytest.mark.parametrize("text", ["", "[]", "null", 3, b"\xff"])
def test_what_is_not_a_record_is_refused(text: Any) -> None:
    with pytest.raises(FreezeError, match="damaged"):
        FreezeRecord.of({KEY: text})


def test_a_state_without_a_record_is_refused() -> None:
    with pytest.raises(FreezeError, match="the checkpoint carries no mask"):
        NeuronMask.from_state_dict({"epoch": 3})


def saved_after_two_steps(path: Path) -> list[reference.Batches]:
    data = reference.batches(5)
    model = tiny.model("llama")
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask_for(model))
    reference.train(model, optimizer, data[:2])
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), **freezer.state_dict()}, path)
    return data


@pytest.mark.parametrize("freeze_first", [True, False])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(freeze_first: bool, tmp_path: Path) -> None:
    data = saved_after_two_steps(tmp_path / "saved.pt")
    state = torch.load(tmp_path / "saved.pt", weights_only=True)
    model, other = tiny.model("llama"), tiny.model("llama")
    mask = mask_for(model)
    frozen, start = reference.dense(other, mask), reference.weights(other)
    reference.train_frozen(other, adamw(other), data, frozen)

    optimizer = adamw(model)
    if freeze_first:
        freezer = freeze(model, optimizer, mask)
        freezer.load_state_dict(state)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if not freeze_first:
        freezer = freeze(model, optimizer, NeuronMask.from_state_dict(state))
        freezer.load_state_dict(state)
    reference.train(model, optimizer, data[2:])
    freezer.check()
    assert_frozen(model, start, frozen)
    assert_same(model, other)


def test_another_mask_is_refused(tmp_path: Path) -> None:
    saved_after_two_steps(tmp_path / "saved.pt")
    model = tiny.model("llama")
    freezer = freeze(model, adamw(model), mask_for(model, seed=2))
    with pytest.raises(FreezeError, match="resume with the checkpoint's mask"):
        freezer.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True))


@pytest.mark.parametrize("at_once", [True, False])
def test_other_frozen_weights_are_refused_before_a_step_is_taken(at_once: bool, tmp_path: Path) -> None:
    data = saved_after_two_steps(tmp_path / "saved.pt")
    model = tiny.model("llama", seed=1)
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask_for(model))
    freezer.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True))
    before = reference.weights(model)
    go_on = freezer.check if at_once else lambda: reference.train(model, optimizer, data[:1])
    with pytest.raises(FreezeError, match="frozen elements changed"):
        go_on()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_accelerate_saves_and_loads_it(tmp_path: Path) -> None:
    from accelerate import Accelerator

    data = reference.batches(2)
    accelerator = Accelerator(cpu=True)
    model = tiny.model("llama")
    model, optimizer = accelerator.prepare(model, adamw(model))
    freezer = freeze(model, optimizer, mask_for(model))
    accelerator.register_for_checkpointing(freezer)
    accelerator.save_state(str(tmp_path / "saved"))
    accelerator.load_state(str(tmp_path / "saved"))
    reference.train(model, optimizer, data)
    freezer.check()

    del accelerator._custom_objects[:]
    with pytest.raises(RuntimeError, match="Number of custom checkpoints"):
        accelerator.load_state(str(tmp_path / "saved"))
