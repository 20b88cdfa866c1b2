"""Quantized models: strategies that read weights refuse them, for these are codes; the others watch them run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from neurofreeze.data import read
from neurofreeze.errors import ConfigError
from neurofreeze.strategies import select
from tests import tiny

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8}  # which blocks of 64 divide
MESSAGE = r"reads weights, and those of model\.layers\.0\.\S+ are quantized; load the model in full precision, or use"
# bitsandbytes says on CPUs that it computes in half precision.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def by_bitsandbytes(**kind: Any) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        config = BitsAndBytesConfig(**kind)
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=config, device_map="cpu"
        )

    return load


def to_eight_bits(folder: Path) -> Any:
    """As checkpoints in FP8 are: codes that are floating point numbers, their scales beside them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    down = model.model.layers[0].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    path = tmp_path_factory.mktemp("dense")
    tiny.model("llama", dtype=torch.float32, vocab_size=len(tiny_tokenizer), **SIZES).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "load",
    [
        by_bitsandbytes(load_in_8bit=True),
        by_bitsandbytes(load_in_4bit=True, bnb_4bit_quant_storage=torch.bfloat16),
        to_eight_bits,
    ],
    ids=["int8", "nf4 in bfloat16", "fp8"],
)
def test_codes_are_not_taken_for_weights(load: Callable[[Path], Any], folder: Path, tiny_tokenizer: Any) -> None:
    model, examples = load(folder), read("bundled:harmful/calibration", limit=2)
    for strategy in ("wifv", "wanda", "snip"):
        with pytest.raises(ConfigError, match=f"strategy '{strategy}' {MESSAGE}"):
            select(model, tiny_tokenizer, examples, strategy)


def test_activations_of_a_quantized_model_are_scored(folder: Path, tiny_tokenizer: Any) -> None:
    model, examples = by_bitsandbytes(load_in_8bit=True)(folder), read("bundled:harmful/calibration", limit=4)
    sets = {"safety": examples[:2], "utility": examples[2:]}
    assert select(model, tiny_tokenizer, sets, "contrast").top(0.1).count > 0
