"""Adding a vector: exactly alpha v, nothing at strength 0, nothing left afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.errors import ConfigError, ModelError
from neurofreeze.guard.steering.blocks import blocks, last_states
from neurofreeze.guard.steering.vector import SteeringVector, VectorConfig
from tests import tiny

IDS = torch.arange(3, 11)[None]


def vector(layers: tuple[int, ...] = (0,), hidden: int = 36, **fields: Any) -> SteeringVector:
    torch.manual_seed(1)
    config = VectorConfig(**{"model_type": None, "hidden_norms": dict.fromkeys(layers, 5.0), **fields})
    return SteeringVector({layer: torch.randn(hidden) for layer in layers}, config)


def states(model: Any, layer: int) -> np.ndarray:
    seen = []
    handle = blocks(model)[layer].register_forward_hook(
        lambda _, inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model(IDS)
    handle.remove()
    return seen[0].numpy()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "falcon", "mixtral"])
def test_a_layer_gives_alpha_v_more_at_every_position(architecture: str) -> None:
    model = tiny.model(architecture)
    v = vector()
    before = states(model, 0)
    with v.applied(model, 0.7, "raw"):
        after = states(model, 0)
    np.testing.assert_array_equal(after, before + (0.7 * v.directions[0]).double().numpy())
    np.testing.assert_array_equal(states(model, 0), before)


def test_a_strength_in_norms_is_the_layer_s_hidden_norm_long() -> None:
    shift = vector().scaled(0.5)[0]
    assert float(shift.norm()) == pytest.approx(2.5)
    assert float(torch.cosine_similarity(shift, vector().directions[0], dim=0)) == pytest.approx(1)


def test_every_layer_of_a_vector_is_steered() -> None:
    model = tiny.model()
    v = vector((0, 1))
    with v.at(0).applied(model, 1, "raw"):
        one = states(model, 1)
    with v.applied(model, 1, "raw"):
        both = states(model, 1)
    np.testing.assert_allclose(both - one, np.broadcast_to(v.directions[1].numpy(), both.shape), atol=1e-12)


def test_strength_0_changes_no_bit_and_no_hook_stays_even_after_an_error() -> None:
    model = tiny.model(dtype=torch.bfloat16)
    with torch.no_grad():
        plain = model(IDS).logits
        with vector().applied(model, 0):
            assert not any(block._forward_hooks for block in blocks(model))
            assert torch.equal(model(IDS).logits.view(torch.int16), plain.view(torch.int16))
        with pytest.raises(RuntimeError, match="of its own"), vector().applied(model, 1):
            raise RuntimeError("of its own")
        assert not any(block._forward_hooks for block in blocks(model))
        assert torch.equal(model(IDS).logits, plain)


def test_the_last_state_of_a_row_does_not_depend_on_its_batch() -> None:
    model = tiny.model()
    rows = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    together = last_states(model, rows, [0, 1], batch_size=3, pad_token_id=0)
    alone = torch.stack([last_states(model, [row], [0, 1], 1, 0)[:, 0] for row in rows], dim=1)
    assert together.shape == (2, 3, 36)
    torch.testing.assert_close(together, alone)


def test_a_vector_for_another_model_is_refused() -> None:
    model = tiny.model()
    for wrong, message in (
        (vector(hidden=35), "35 entries, the model 36"),
        (vector((2,)), "for layer 2, the model has 2 layers"),
        (vector(model_type="gpt2"), "for gpt2 models, this one is llama"),
    ):
        with pytest.raises(ModelError, match=message), wrong.applied(model, 1, "raw"):
            pass
    with pytest.raises(ConfigError, match="no hidden norm at layer 0; use unit=raw"):
        vector(hidden_norms={}).scaled(1)
    with pytest.raises(ConfigError, match="no direction at layer 1; expected one of 0"):
        vector().at(1)
    with pytest.raises(ModelError, match="not a finite vector"):
        SteeringVector({0: torch.tensor([float("nan")])}, VectorConfig(None))


def test_files_bring_the_same_vector_back(tmp_path: Path) -> None:
    v = vector((0, 1), model_type="llama", recipe={"name": "json"}, calibration={"benign": "ab"})
    found = SteeringVector.from_pretrained(v.save_pretrained(tmp_path / "v"))
    assert found.digest == v.digest
    assert found.config == v.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version 2, expected 1"),
        ({"surprise": 1}, "unknown fields surprise"),
        ({"hidden_norms": [1]}, "not a steering vector's config"),
    ],
)
def test_a_malformed_config_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = vector().save_pretrained(tmp_path) / "steering_vector_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        SteeringVector.from_pretrained(tmp_path)


def test_a_folder_without_a_vector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no steering_vector_config\.json in"):
        SteeringVector.from_pretrained(tmp_path)
    (vector().save_pretrained(tmp_path) / "steering_vector.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="is not a steering vector"):
        SteeringVector.from_pretrained(tmp_path)
