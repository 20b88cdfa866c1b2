"""Masks on disk: what was written comes back, and nothing else is read."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors import torch as safetensors

from neurofreeze._version import __version__
from neurofreeze.errors import MaskError
from neurofreeze.mask import MaskConfig, NeuronMask
from neurofreeze.mask_file import CARD, CONFIG, WEIGHTS
from neurofreeze.neurons import NeuronMap
from tests import tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILES = {"neuron_mask.safetensors", "neuron_mask_config.json", "README.md"}
ORIGIN = {
    "model": "org/tiny-llama",
    "revision": "abc123",
    "fingerprint": "0123456789abcdef",
    "strategy": {"name": "wifv", "fraction": 0.3, "layers": [0, 1]},
    "calibration": {"harmful": "d1", "harmless": "d2"},
}


@pytest.fixture(scope="module")
def mask() -> NeuronMask:
    return NeuronMask.random(NeuronMap.of(tiny.config()), 0.3, seed=2).with_config(**ORIGIN)


@pytest.fixture
def folder(mask: NeuronMask, tmp_path: Path) -> Path:
    return mask.save_pretrained(tmp_path / "mask")


def with_scores(mask: NeuronMask) -> NeuronMask:
    rng = np.random.default_rng(0)
    scores = {name: rng.standard_normal(len(bits)).astype(np.float32) for name, bits in mask.bits.items()}
    scores["layers.1.mlp"][:2] = [-0.0, 1e-42]  # a sign and a subnormal
    return NeuronMask(mask.bits, mask.config, scores)


def test_a_mask_comes_back_as_it_was_saved(mask: NeuronMask, folder: Path) -> None:
    loaded = NeuronMask.from_pretrained(folder)
    assert loaded == mask
    assert loaded.config == mask.config
    assert loaded.scores is None
    assert all(np.array_equal(loaded.bits[name], mask.bits[name]) for name in mask.bits)


def test_scores_come_back_bit_by_bit(mask: NeuronMask, tmp_path: Path) -> None:
    saved = with_scores(mask)
    loaded = NeuronMask.from_pretrained(saved.save_pretrained(tmp_path))
    assert saved.scores is not None
    assert loaded.scores is not None
    for name, scores in saved.scores.items():
        assert loaded.scores[name].dtype == np.float32
        assert np.array_equal(loaded.scores[name].view(np.int32), scores.view(np.int32))


@pytest.mark.parametrize("neurons", [1, 7, 8, 9, 16, 17])
def test_any_number_of_neurons_can_be_stored(neurons: int, tmp_path: Path) -> None:
    config = MaskConfig("own", "head", "00", {"layers.0.mlp": neurons})
    for bits in (np.ones(neurons, bool), np.arange(neurons) % 3 == 0):
        mask = NeuronMask({"layers.0.mlp": bits}, config)
        assert NeuronMask.from_pretrained(mask.save_pretrained(tmp_path)) == mask


def test_the_bits_are_packed_least_significant_first(folder: Path, mask: NeuronMask) -> None:
    tensors = safetensors.load_file(folder / WEIGHTS)
    for name, bits in mask.bits.items():
        expected = [0] * -(-len(bits) // 8)
        for neuron, bit in enumerate(bits.tolist()):
            expected[neuron // 8] |= bit << neuron % 8
        assert tensors[name].tolist() == expected


def test_the_folder_holds_three_files_and_no_pickle(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES == {WEIGHTS, CONFIG, CARD}
    for path in folder.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))
    header = int.from_bytes((folder / WEIGHTS).read_bytes()[:8], "little")
    json.loads((folder / WEIGHTS).read_bytes()[8 : 8 + header])


def test_saving_again_replaces_the_old_mask(mask: NeuronMask, folder: Path) -> None:
    with_scores(mask).save_pretrained(folder)
    (~mask).save_pretrained(folder)
    loaded = NeuronMask.from_pretrained(folder)
    assert loaded == ~mask
    assert loaded.scores is None
    assert {path.name for path in folder.iterdir()} == FILES


def test_the_config_is_plain_json_that_says_where_the_mask_is_from(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    assert config | ORIGIN == config
    assert config["format_version"] == 1
    assert config["library_version"] == __version__
    assert config["neurons"] == {
        "layers.0.attention": 6,
        "layers.0.mlp": 70,
        "layers.1.attention": 6,
        "layers.1.mlp": 70,
    }


def test_the_card_states_the_counts_and_the_model(mask: NeuronMask, folder: Path) -> None:
    card = (folder / CARD).read_text(encoding="utf-8")
    assert re.search(rf"\b{mask.count} of\s+152 neurons", card)
    assert "base_model: org/tiny-llama" in card
    for text in ("abc123", "0123456789abcdef", "wifv"):
        assert text in card


def test_a_mask_needs_no_card_to_load(mask: NeuronMask, folder: Path) -> None:
    (folder / CARD).unlink()
    assert NeuronMask.from_pretrained(folder) == mask


def test_optional_fields_may_be_missing(mask: NeuronMask, folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    for name in ORIGIN:
        del config[name]
    (folder / CONFIG).write_text(json.dumps(config))
    loaded = NeuronMask.from_pretrained(folder)
    assert loaded == mask
    assert loaded.config.fingerprint is None


def without(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != name}


MALFORMED_CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version 2": (lambda c: c | {"format_version": 2}, "field 'format_version': found 2, expected 1"),
    "version as text": (lambda c: c | {"format_version": "1"}, "field 'format_version': found '1'"),
    "no version": (lambda c: without(c, "format_version"), "field 'format_version': found None"),
    "unknown field": (lambda c: c | {"_class": "os.system"}, "field '_class': unknown"),
    "no model type": (lambda c: without(c, "model_type"), "field 'model_type': missing"),
    "no granularity": (lambda c: without(c, "granularity"), "field 'granularity': missing"),
    "no layout": (lambda c: without(c, "layout"), "field 'layout': missing"),
    "no neurons": (lambda c: without(c, "neurons"), "field 'neurons': missing"),
    "null model type": (
        lambda c: c | {"model_type": None},
        "field 'model_type': found NoneType, expected str",
    ),
    "unknown granularity": (lambda c: c | {"granularity": "neuron"}, "field 'granularity': found 'neuron'"),
    "numeric layout": (lambda c: c | {"layout": 7}, "field 'layout': found int, expected str"),
    "neurons as list": (lambda c: c | {"neurons": [6, 70]}, "field 'neurons': found list, expected dict"),
    "no site": (lambda c: c | {"neurons": {}}, "field 'neurons': "),
    "numeric revision": (
        lambda c: c | {"revision": 1.5},
        "field 'revision': found float, expected str or NoneType",
    ),
    "strategy as text": (lambda c: c | {"strategy": "wifv"}, "field 'strategy': found str, expected dict"),
    "calibration null": (lambda c: c | {"calibration": None}, "field 'calibration': found NoneType"),
    "not an object": (lambda c: [c], "holds a list, expected an object"),
    **{
        f"{count!r} neurons": (
            lambda c, count=count: c | {"neurons": c["neurons"] | {"layers.0.mlp": count}},
            rf"field 'neurons\.layers\.0\.mlp': found {count!r}, expected a positive whole number",
        )
        for count in (-70, 0, 70.0, True, None, "70")
    },
    "one neuron less": (
        lambda c: c | {"neurons": c["neurons"] | {"layers.0.mlp": 64}},
        r"field 'bits\.layers\.0\.mlp': found uint8 of shape \(9,\), expected uint8 of shape \(8,\)",
    ),
    "a huge count": (
        lambda c: c | {"neurons": c["neurons"] | {"layers.0.mlp": 10**15}},
        r"field 'bits\.layers\.0\.mlp': found uint8 of shape \(9,\)",
    ),
    "a site more": (
        lambda c: c | {"neurons": c["neurons"] | {"layers.2.mlp": 70}},
        r"field 'neurons': sites \['layers\.2\.mlp'\] are in only one",
    ),
}


@pytest.mark.parametrize("case", MALFORMED_CONFIGS)
def test_a_malformed_config_is_refused_by_field(case: str, folder: Path) -> None:
    change, message = MALFORMED_CONFIGS[case]
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(change(config)))
    with pytest.raises(MaskError, match=message):
        NeuronMask.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"\x80\x04\x95"])
def test_a_config_that_is_not_json_is_refused(content: bytes, folder: Path) -> None:
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(MaskError, match=rf"{CONFIG} is not JSON"):
        NeuronMask.from_pretrained(folder)


def test_a_missing_config_is_refused(folder: Path) -> None:
    (folder / CONFIG).unlink()
    with pytest.raises(MaskError, match=rf"{CONFIG} cannot be read \(No such file or directory\)"):
        NeuronMask.from_pretrained(folder)


def test_a_missing_weights_file_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(MaskError, match=rf"{WEIGHTS} is not a readable safetensors file"):
        NeuronMask.from_pretrained(folder)


def test_a_file_cut_short_anywhere_is_refused(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    for length in range(0, len(content), 13):
        (folder / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(MaskError, match=rf"{WEIGHTS} is not a readable safetensors file"):
            NeuronMask.from_pretrained(folder)


def change_of(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: tensors | {name: tensor}


def zeros(size: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros(size, dtype=dtype)


MLP, SCORES = "layers.0.mlp", "layers.0.mlp.scores"
MALFORMED_TENSORS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "int8 bits": (change_of(MLP, zeros(9, torch.int8)), r"field 'bits\.layers\.0\.mlp': found int8"),
    "bool bits": (change_of(MLP, zeros(9, torch.bool)), r"field 'bits\.layers\.0\.mlp': found bool"),
    "bfloat16 bits": (change_of(MLP, zeros(9, torch.bfloat16)), "bfloat16"),
    "float8 bits": (change_of(MLP, zeros(9, torch.float8_e4m3fn)), "float8_e4m3"),
    "too short": (change_of(MLP, zeros(8)), r"field 'bits.*found uint8 of shape \(8,\)"),
    "too long": (change_of(MLP, zeros(10)), r"field 'bits.*found uint8 of shape \(10,\)"),
    "a matrix": (change_of(MLP, zeros(9).view(9, 1)), r"field 'bits.*found uint8 of shape \(9, 1\)"),
    "padding set": (
        change_of(MLP, torch.tensor([0] * 8 + [0b0100_0000], dtype=torch.uint8)),
        r"field 'bits\.layers\.0\.mlp': bits are set beyond neuron 69",
    ),
    "a site less": (
        lambda tensors: without(tensors, "layers.1.attention"),
        r"field 'neurons': sites \['layers\.1\.attention'\] are in only one",
    ),
    "a site more": (
        change_of("layers.2.mlp", zeros(9)),
        r"field 'neurons': sites \['layers\.2\.mlp'\] are in only one",
    ),
    "a NaN score": (change_of(SCORES, torch.full((70,), torch.nan)), r"'scores\.layers\.0\.mlp': holds NaN"),
    "an infinite score": (change_of(SCORES, torch.full((70,), -torch.inf)), r"'scores\.layers\.0\.mlp'"),
    "scores of one site": (change_of(SCORES, torch.zeros(70)), "field 'scores': sites"),
    "scores of no site": (change_of("layers.9.mlp.scores", torch.zeros(70)), "field 'scores': sites"),
}


@pytest.mark.parametrize("case", MALFORMED_TENSORS)
def test_malformed_tensors_are_refused_by_field(case: str, folder: Path) -> None:
    change, message = MALFORMED_TENSORS[case]
    safetensors.save_file(change(safetensors.load_file(folder / WEIGHTS)), folder / WEIGHTS)
    with pytest.raises(MaskError, match=message):
        NeuronMask.from_pretrained(folder)


@pytest.mark.parametrize("scores", [torch.zeros(70, dtype=torch.float64), torch.zeros(69), torch.zeros(70, 1)])
def test_scores_of_another_type_or_shape_are_refused(scores: torch.Tensor, mask: NeuronMask, tmp_path: Path) -> None:
    folder = with_scores(mask).save_pretrained(tmp_path)
    tensors = safetensors.load_file(folder / WEIGHTS) | {"layers.0.mlp.scores": scores}
    safetensors.save_file(tensors, folder / WEIGHTS)
    with pytest.raises(MaskError, match=r"field 'scores\.layers\.0\.mlp': found float"):
        NeuronMask.from_pretrained(folder)


def test_a_mask_of_no_neuron_at_all_is_refused(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"neurons": {}}))
    safetensors.save_file({}, folder / WEIGHTS)
    with pytest.raises(MaskError, match="field 'neurons': names no site"):
        NeuronMask.from_pretrained(folder)


def test_a_mask_of_another_model_is_refused_when_the_model_is_given(mask: NeuronMask, folder: Path) -> None:
    assert NeuronMask.from_pretrained(folder, model=tiny.config()) == mask
    assert NeuronMask.from_pretrained(folder, model=NeuronMap.of(tiny.config())) == mask
    with pytest.raises(MaskError, match=r"field 'neurons\.layers\.0\.mlp': the mask has 70, the model has 71"):
        NeuronMask.from_pretrained(folder, model=tiny.config(intermediate_size=71))
    with pytest.raises(MaskError, match="field 'model_type': the mask has llama, the model has smollm3"):
        NeuronMask.from_pretrained(folder, model=tiny.config("smollm3"))


@pytest.mark.parametrize("source", ["./none", "/none/at/all", "~/none", "a/b/c"])
def test_a_missing_folder_is_not_asked_of_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(MaskError, match=f"no folder {source}"):
        NeuronMask.from_pretrained(source)


def test_an_unreachable_hub_is_a_mask_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        MaskError, match="no mask at org/mask: neither a folder nor a reachable hub repository"
    ) as found:
        NeuronMask.from_pretrained("org/mask")
    assert "expected a folder with neuron_mask_config.json" in str(found.value)
    assert "\n" not in str(found.value)


def test_a_hub_mask_is_loaded_at_its_revision_from_three_files(
    mask: NeuronMask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(repo_id=repo_id, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert NeuronMask.from_pretrained("org/mask", revision="v1") == mask
    assert asked.pop("repo_id") == "org/mask"
    assert asked.pop("revision") == "v1"
    assert set(asked.pop("allow_patterns")) == FILES


def test_push_to_hub_uploads_what_save_pretrained_writes(
    mask: NeuronMask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    uploaded: dict[str, bytes] = {}

    class Api:
        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append(("create_repo", {"repo_id": repo_id, **options}))

        def upload_folder(self, *, folder_path: str, **options: Any) -> SimpleNamespace:
            from pathlib import Path

            calls.append(("upload_folder", options))
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert mask.push_to_hub("org/mask", revision="main") == "https://hub/commit/1"
    assert calls[0] == ("create_repo", {"repo_id": "org/mask", "private": True, "exist_ok": True})
    assert calls[1][0] == "upload_folder"
    assert calls[1][1]["repo_id"] == "org/mask"
    assert calls[1][1]["revision"] == "main"
    assert uploaded == {path.name: path.read_bytes() for path in folder.iterdir()}
