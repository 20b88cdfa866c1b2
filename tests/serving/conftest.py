from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neurofreeze.models.load import load_model


@pytest.fixture(scope="session")
def model(tiny_checkpoint: Path) -> Any:
    """A model in float64, so that batching cannot change an argmax, whose answers depend on what is asked."""
    model = load_model(tiny_checkpoint, torch.float64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()  # random ones drown the prompt
            elif "o_proj" in name or "down_proj" in name:
                parameter.mul_(4)
    return model
