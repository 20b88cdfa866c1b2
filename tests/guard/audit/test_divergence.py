"""KL along the original's answers against numpy, and nothing where nothing changed."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.errors import ModelError
from neurofreeze.guard.audit.divergence import divergences
from tests import tiny

ROWS = [([5, 6, 7, 8, 9], 3), ([10, 11, 12, 13], 2), ([14, 15], 2)]


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    found = logits.double().numpy()
    found = found - found.max(-1, keepdims=True)
    return found - np.log(np.exp(found).sum(-1, keepdims=True))


def reference(p_model: Any, q_model: Any, row: list[int], start: int) -> list[float]:
    """Row by row, without padding."""
    with torch.no_grad():
        p, q = (log_softmax(model(torch.tensor([row])).logits[0]) for model in (p_model, q_model))
    return [float((np.exp(p[t]) * (p[t] - q[t])).sum()) for t in range(start - 1, len(row) - 1)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_position_is_numpy_s(batch_size: int) -> None:
    original, other = tiny.model(seed=0), tiny.model(seed=1)
    found = divergences(original, lambda: nullcontext(other), ROWS, batch_size, 0)
    assert [len(row) for row in found] == [2, 2, 0]
    for (row, start), values in zip(ROWS, found, strict=True):
        np.testing.assert_allclose(values, reference(original, other, row, start), rtol=1e-4)


def test_the_same_model_diverges_nowhere_and_the_change_is_off_while_the_original_computes() -> None:
    model = tiny.model()
    events: list[str] = []
    handle = model.register_forward_pre_hook(lambda *_: events.append("forward"))

    @contextmanager
    def applied() -> Any:
        events.append("on")
        yield model
        events.append("off")

    assert divergences(model, applied, ROWS, 3, 0) == [[0, 0], [0, 0], []]
    handle.remove()
    assert events == ["forward", "on", "forward", "off"]


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ModelError, match="64 tokens, with the intervention 70"):
        divergences(tiny.model(), lambda: nullcontext(tiny.model(vocab_size=70)), ROWS, 3, 0)
