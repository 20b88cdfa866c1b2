from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neurofreeze.data.examples import Example
from neurofreeze.data.sources import read
from neurofreeze.models.load import load_model
from tests import tiny


@pytest.fixture(scope="session")
def gated(tiny_checkpoint: Path) -> Any:
    """A model in float64, so that batching cannot change an argmax, whose answers are not one token again and again."""
    model = load_model(tiny_checkpoint, torch.float64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="session")
def expert(tiny_tokenizer: Any) -> Any:
    """Another model with the same token ids."""
    return tiny.model("llama", seed=7, vocab_size=len(tiny_tokenizer), max_position_embeddings=512)


@pytest.fixture(scope="session")
def harmful() -> list[Example]:
    return read("bundled:harmful/calibration")[:20]


@pytest.fixture(scope="session")
def benign() -> list[Example]:
    return read("bundled:instructions/calibration")[:20]
