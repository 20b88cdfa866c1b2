"""Models that accelerate spreads and offloads (`device_map`): the same scores, bit for bit, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from transformers import AutoModelForCausalLM

from neurofreeze import NeuronMap, NeuronMask
from neurofreeze.data import read
from neurofreeze.errors import ConfigError
from neurofreeze.evaluation.ablation import ablated
from neurofreeze.models.load import load_model
from neurofreeze.strategies import STRATEGIES, NeuronScores, select
from tests import tiny

SETS = {"safety": read("bundled:harmful/calibration", limit=6), "utility": read("bundled:instructions/calibration")[:5]}
MAP = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}
NEEDS: dict[str, dict[str, Any]] = {"safe_layers": {"first": 0, "last": 0}}


def mapped(checkpoint: Path, folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, device_map=MAP, offload_folder=str(folder), use_safetensors=True
    )


def on_the_cpu(checkpoint: Path, folder: Path) -> Any:
    return cpu_offload(load_model(checkpoint, torch.float32), torch.device("cpu"))


def on_disk(checkpoint: Path, folder: Path) -> Any:
    return disk_offload(load_model(checkpoint, torch.float32), str(folder), torch.device("cpu"))


def dispatched(checkpoint: Path, folder: Path) -> Any:
    return dispatch_model(load_model(checkpoint, torch.float32), dict.fromkeys(MAP, "cpu"), force_hooks=True)


OFFLOADS = {"mapped": mapped, "cpu": on_the_cpu, "disk": on_disk}


def scored(model: Any, tokenizer: Any, strategy: str, **options: Any) -> NeuronScores:
    if strategy == "change":
        options["reference"] = reference()
    return select(model, tokenizer, SETS, strategy, batch_size=2, max_length=128, **NEEDS.get(strategy, {}), **options)


def reference() -> Any:
    return tiny.model("llama", seed=3, dtype=torch.float32, vocab_size=400, max_position_embeddings=512)


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "snip"])
def test_scores_are_those_of_the_plain_model(
    strategy: str, offload: str, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = OFFLOADS[offload](tiny_checkpoint, tmp_path)
    meta = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    assert "model.layers.1.mlp.down_proj.weight" in meta
    found = scored(model, tiny_tokenizer, strategy)
    expected = scored(load_model(tiny_checkpoint, torch.float32), tiny_tokenizer, strategy)
    for name, values in expected.values.items():
        np.testing.assert_array_equal(found.values[name], values, err_msg=name)
    assert [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"] == meta


@pytest.mark.parametrize("offload", OFFLOADS)
def test_snip_refuses_offloaded_weights(
    offload: str, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="accelerate drops those of offloaded ones; load the model without"):
        scored(OFFLOADS[offload](tiny_checkpoint, tmp_path), tiny_tokenizer, "snip")


@pytest.mark.parametrize("strategy", ["wifv", "snip", "margin"])
def test_a_model_that_is_spread_but_not_offloaded_has_all_scores(
    strategy: str, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = dispatched(tiny_checkpoint, tmp_path)
    assert hasattr(model.model.layers[1], "_hf_hook")
    found = scored(model, tiny_tokenizer, strategy)
    expected = scored(load_model(tiny_checkpoint, torch.float32), tiny_tokenizer, strategy)
    for name, values in expected.values.items():
        np.testing.assert_array_equal(found.values[name], values, err_msg=name)


@pytest.mark.parametrize("spread", [*OFFLOADS.values(), dispatched], ids=lambda spread: spread.__name__)
@torch.no_grad()
def test_ablated_takes_the_same_neurons_out(
    spread: Callable[[Path, Path], Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plain, model = load_model(tiny_checkpoint, torch.float32), spread(tiny_checkpoint, tmp_path)
    mask, ids = NeuronMask.random(NeuronMap.of(plain), 0.3, seed=0), torch.arange(5, 25)[None]
    with ablated(plain, mask):
        expected = plain(ids).logits
    with ablated(model, mask):
        assert torch.equal(model(ids).logits, expected)
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert not torch.equal(model(ids).logits, expected)


def test_an_interrupted_selection_of_an_offloaded_model_goes_on(
    tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    model = mapped(tiny_checkpoint, tmp_path / "offload")
    with pytest.raises(KeyboardInterrupt):
        scored(model, tiny_tokenizer, "wifv", resume=tmp_path / "kept", progress=stop)
    told: list[int] = []
    found = scored(model, tiny_tokenizer, "wifv", resume=tmp_path / "kept", progress=lambda: told.append(1))
    assert len(told) == 3
    expected = scored(load_model(tiny_checkpoint, torch.float32), tiny_tokenizer, "wifv")
    for name, values in expected.values.items():
        np.testing.assert_array_equal(found.values[name], values, err_msg=name)
