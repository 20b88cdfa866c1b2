"""Selections that were interrupted: they go on at the batch where they stopped, to the same bits, or say why not."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from neurofreeze.data import read
from neurofreeze.errors import NeuroFreezeWarning
from neurofreeze.models.load import load_model
from neurofreeze.strategies import NeuronScores, make, resuming, select, select_all
from neurofreeze.strategies.base import ForwardStrategy
from tests import tiny

SETS = {
    "safety": read("bundled:harmful/calibration", limit=10),
    "utility": read("bundled:instructions/calibration")[:9],
}
FORWARD = ("wifv", "wanda", "contrast", "probe", "sn_tune")


class StoppedError(Exception):
    """What interrupts."""


def stopping(at: int, how: Callable[[], None]) -> Callable[[], None]:
    """A progress callback that interrupts after batch `at`."""
    told: list[int] = []

    def progress() -> None:
        told.append(1)
        if len(told) == at:
            how()

    return progress


def stop() -> None:
    raise StoppedError


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return load_model(tiny_checkpoint, torch.float32)


@pytest.fixture
def seen(model: Any) -> Iterator[list[int]]:
    """One entry for each forward pass of the model."""
    passes: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
    yield passes
    handle.remove()


def run(model: Any, tokenizer: Any, names: tuple[str, ...], **options: Any) -> list[NeuronScores]:
    options = {"batch_size": 2, "max_length": 128, **options}
    return select_all(model, tokenizer, SETS, [make(name, {}) for name in names], **options)


def same(found: list[NeuronScores], expected: list[NeuronScores]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.values.keys() == other.values.keys()
        for name, values in other.values.items():
            np.testing.assert_array_equal(one.values[name], values, err_msg=name)


@pytest.mark.parametrize(
    ("names", "at"),
    [
        *((FORWARD, at) for at in (1, 3, 5, 7, 10)),  # five batches of each set
        *((("snip",), at) for at in (1, 3, 5)),
        *((("margin",), at) for at in (1, 3, 7)),
        *((("wifv", "snip", "random"), at) for at in (3, 5, 7)),
    ],
)
def test_an_interrupted_selection_goes_on_to_the_same_bits(
    names: tuple[str, ...], at: int, model: Any, tiny_tokenizer: Any, seen: list[int], tmp_path: Path
) -> None:
    whole: list[int] = []
    expected = run(model, tiny_tokenizer, names, progress=lambda: whole.append(1))
    every = len(seen)
    with pytest.raises(StoppedError):
        run(model, tiny_tokenizer, names, resume=tmp_path / "kept", progress=stopping(at, stop))
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["rank-0.safetensors"]
    told: list[int] = []
    found = run(model, tiny_tokenizer, names, resume=tmp_path / "kept", progress=lambda: told.append(1))
    same(found, expected)
    assert len(seen) == 2 * every  # no batch twice, none left out
    assert not (tmp_path / "kept").exists()
    assert len(told) == len(whole)


def test_it_may_be_interrupted_again_and_again(model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    expected = run(model, tiny_tokenizer, FORWARD)
    for at in (2, 4, 5, 9):
        with pytest.raises(StoppedError):
            run(model, tiny_tokenizer, FORWARD, resume=tmp_path, progress=stopping(at, stop))
    same(run(model, tiny_tokenizer, FORWARD, resume=tmp_path), expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_takes_effect_when_its_batch_is_whole(
    number: int, model: Any, tiny_tokenizer: Any, seen: list[int], tmp_path: Path
) -> None:
    expected = run(model, tiny_tokenizer, ("wifv",))
    seen.clear()
    came: list[int] = []

    def send(_: Any, inputs: Any) -> None:
        # In the middle of the third batch: one layer has been seen, the other not.
        if len(seen) == 3:
            signal.raise_signal(number)
            came.append(1)

    before = {other: signal.signal(other, lambda *_: stop()) for other in (signal.SIGTERM, signal.SIGUSR1)}
    handle = model.model.layers[1].register_forward_pre_hook(send)
    try:
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else StoppedError):
            run(model, tiny_tokenizer, ("wifv",), resume=tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        handle.remove()
        for other, handler in before.items():
            signal.signal(other, handler)
    assert came  # the batch went on
    assert len(seen) == 3
    same(run(model, tiny_tokenizer, ("wifv",), resume=tmp_path), expected)
    assert len(seen) == 5


def test_a_second_ctrl_c_stops_at_once(model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    def send(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    handles = [layer.register_forward_pre_hook(send) for layer in model.model.layers]
    try:
        with pytest.raises(KeyboardInterrupt):
            run(model, tiny_tokenizer, ("wifv",), resume=tmp_path)
    finally:
        for handle in handles:
            handle.remove()
    assert not (tmp_path / "rank-0.safetensors").exists()  # the first batch never was whole


def test_an_error_in_the_middle_of_a_batch_leaves_what_was_kept_before(
    model: Any, tiny_tokenizer: Any, seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(model, tiny_tokenizer, ("wifv",))
    seen.clear()
    monkeypatch.setattr(resuming, "_EVERY", 0.0)
    monkeypatch.setattr(resuming, "_SHARE", 1e9)

    def fail(_: Any, inputs: Any) -> None:
        if len(seen) == 4:
            raise StoppedError

    handle = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(StoppedError):
        run(model, tiny_tokenizer, ("wifv",), resume=tmp_path)
    handle.remove()
    same(run(model, tiny_tokenizer, ("wifv",), resume=tmp_path), expected)
    assert len(seen) == 4 + 2


def interrupted(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
    with pytest.raises(StoppedError):
        run(model, tokenizer, ("wifv",), resume=folder, progress=stopping(3, stop), **options)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"max_length": 32}, r"max_length was 128, is 32"),
        ({"granularity": "channel"}, "its layout differs"),
        ({"batch_size": 3}, "batch_size was 2, is 3"),
    ],
)
def test_other_options_start_again(
    changed: dict[str, Any], why: str, model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    expected = run(model, tiny_tokenizer, ("wifv",), **changed)
    interrupted(model, tiny_tokenizer, tmp_path)
    with pytest.warns(NeuroFreezeWarning, match=rf"left by another selection \(.*{why}.*starting from the first batch"):
        found = run(model, tiny_tokenizer, ("wifv",), resume=tmp_path, **changed)
    same(found, expected)


def test_another_strategy_or_option_of_it_starts_again(model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    interrupted(model, tiny_tokenizer, tmp_path)
    with pytest.warns(NeuroFreezeWarning, match=r"strategies was WIFV\(standardize=True.*is WIFV\(standardize=False"):
        found = select(
            model, tiny_tokenizer, SETS, "wifv", standardize=False, batch_size=2, max_length=128, resume=tmp_path
        )
    same([found], [select(model, tiny_tokenizer, SETS, "wifv", standardize=False, batch_size=2, max_length=128)])


def test_other_data_start_again(model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    interrupted(model, tiny_tokenizer, tmp_path)
    with pytest.warns(NeuroFreezeWarning, match="its calibration data differs"):
        select(
            model, tiny_tokenizer, {"safety": SETS["safety"][1:]}, "wifv", batch_size=2, max_length=128, resume=tmp_path
        )


def test_other_weights_of_the_same_shape_start_again(model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    interrupted(model, tiny_tokenizer, tmp_path)
    other = tiny.model("llama", dtype=torch.float32, vocab_size=400, max_position_embeddings=512)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 4] *= 1.01
    with pytest.warns(NeuroFreezeWarning, match=r"\(its model differs\)"):
        found = run(other, tiny_tokenizer, ("wifv",), resume=tmp_path)
    same(found, run(other, tiny_tokenizer, ("wifv",)))


def test_a_damaged_file_starts_again(model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    interrupted(model, tiny_tokenizer, tmp_path)
    file = tmp_path / "rank-0.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(NeuroFreezeWarning, match="it cannot be read"):
        found = run(model, tiny_tokenizer, ("wifv",), resume=tmp_path)
    same(found, run(model, tiny_tokenizer, ("wifv",)))


def test_what_is_complete_is_kept_on_request(model: Any, tiny_tokenizer: Any, seen: list[int], tmp_path: Path) -> None:
    expected = run(model, tiny_tokenizer, ("wifv",), resume=tmp_path, keep=True)
    seen.clear()
    same(run(model, tiny_tokenizer, ("wifv",), resume=tmp_path, keep=True), expected)
    assert not seen
    with safe_open(tmp_path / "rank-0.safetensors", framework="pt") as file:
        assert all("/" in key for key in file.keys())  # noqa: SIM118


def test_every_forward_strategy_was_tried() -> None:
    from neurofreeze.strategies import STRATEGIES

    given = {"change": {"reference": tiny.model("llama")}, "safe_layers": {"first": 0, "last": 0}}
    watching = [name for name in STRATEGIES if isinstance(make(name, given.get(name, {})), ForwardStrategy)]
    assert sorted(watching) == sorted(FORWARD)
