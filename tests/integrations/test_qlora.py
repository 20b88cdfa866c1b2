"""FreezeCallback where TRL's SFTTrainer trains LoRA adapters on a base that bitsandbytes quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from neurofreeze import FreezeCallback, NeuroFreezeWarning, NeuronMask, verify
from tests import tiny
from tests.integrations.test_adapters import load, merged, trainer_of
from tests.reference import mask_for
from tests.test_qlora import SIZES


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.checkpoint(tmp_path / "base", ["Of course.", "I cannot help with that."], **SIZES)


@pytest.fixture
def mask(base: Path) -> NeuronMask:
    return mask_for(load(base))


def quantized(base: Path) -> Any:
    """As QLoRA's authors do it: nf4, constants quantized too, bfloat16."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map="cpu")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("frozen", [True, False])
def test_sft_trains_adapters_that_merge_into_the_base_beside_frozen_bits(
    frozen: bool, base: Path, mask: NeuronMask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(base, *([FreezeCallback(mask, check_every=1)] if frozen else []), model=quantized(base))
    if frozen:
        with pytest.warns(NeuroFreezeWarning, match="the base is quantized"):
            trainer.train()
        assert "frozen neurons: intact in all 6 checks" in capsys.readouterr().out
    else:
        trainer.train()
    found = verify(base, merged(base, "out/checkpoint-3", tmp_path / "merged"), mask)
    assert found.trainable_changed > 1_000
    assert found.frozen > 10_000
    assert found.ok is frozen, str(found)
