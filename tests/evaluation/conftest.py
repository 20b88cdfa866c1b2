from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neurofreeze.models.load import load_model


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> Any:
    """The model of `tiny_checkpoint` in float64, so that batching cannot change an argmax.

    Its blocks are made louder than its tied embeddings, or every answer would repeat the prompt's last token.
    """
    model = load_model(tiny_checkpoint, torch.float64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            elif "o_proj" in name or "down_proj" in name:
                parameter.mul_(4)
    return model
