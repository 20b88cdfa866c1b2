"""Safety rows: each projection on its own, with the profiles that hooks see, in models with a gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.data import Example, read
from neurofreeze.data.batches import batches
from neurofreeze.errors import ArchitectureError, ConfigError
from neurofreeze.methods.nest.rows import SafetyRows, require_gated, safety_rows
from neurofreeze.models.load import load_model
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies import select
from neurofreeze.strategies.probe import Probe
from tests import tiny

THRESHOLD = 0.5


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Example]]:
    return {
        "safety": read("bundled:harmful/calibration", limit=7),
        "utility": read("bundled:instructions/calibration", limit=5),
    }


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return load_model(tiny_checkpoint, torch.float64)


@pytest.fixture(scope="module")
def found(model: Any, tiny_tokenizer: Any, sets: Any) -> list[SafetyRows]:
    return safety_rows(model, tiny_tokenizer, sets, Probe(), THRESHOLD, batch_size=3)


def maxima(model: Any, module: str, tokenizer: Any, examples: list[Example]) -> np.ndarray:
    """[prompts, outputs], one conversation at a time, over the tokens before its answer."""
    found: list[torch.Tensor] = []
    for example in examples:
        (batch,) = batches(tokenizer, [example], 1)
        prompt = ~batch.response_mask[0]
        handle = model.get_submodule(module).register_forward_hook(
            lambda _, args, output, prompt=prompt: found.append(output[0, prompt].amax(0))
        )
        with torch.no_grad():
            model(input_ids=batch.input_ids)
        handle.remove()
    return torch.stack(found).numpy()


def test_each_projection_chooses_for_itself(found: list[SafetyRows]) -> None:
    names = [rows.parameter for rows in found]
    projections = [f"model.layers.{n}.mlp.{p}_proj.weight" for n in (0, 1) for p in ("gate", "up")]
    assert names == projections
    assert all((np.diff(rows.rows) > 0).all() for rows in found)
    assert found[0].rows.tolist() != found[1].rows.tolist()


def test_together_they_are_the_neurons_of_the_strategy(
    found: list[SafetyRows], model: Any, tiny_tokenizer: Any, sets: Any
) -> None:
    mask = select(model, tiny_tokenizer, sets, "probe", batch_size=3).above(THRESHOLD)
    for layer in (0, 1):
        own = [rows.rows for rows in found if f"layers.{layer}." in rows.parameter]
        assert np.unique(np.concatenate(own)).tolist() == np.flatnonzero(mask.bits[f"layers.{layer}.mlp"]).tolist()
        assert all(len(part) < mask.bits[f"layers.{layer}.mlp"].sum() for part in own)


def test_profiles_are_maxima_over_the_prompt_s_tokens_harmful_ones_first(
    found: list[SafetyRows], model: Any, tiny_tokenizer: Any, sets: Any
) -> None:
    for rows in found:
        assert rows.profiles.shape == (len(rows.rows), 12)
        for role, part in (("safety", slice(0, 7)), ("utility", slice(7, 12))):
            seen = maxima(model, rows.parameter.removesuffix(".weight"), tiny_tokenizer, sets[role])[:, rows.rows].T
            # Batches go from the longest conversation to the shortest.
            np.testing.assert_allclose(np.sort(rows.profiles[:, part]), np.sort(seen), rtol=1e-9)


def test_a_threshold_that_nothing_exceeds_is_refused(model: Any, tiny_tokenizer: Any, sets: Any) -> None:
    with pytest.raises(ConfigError, match="lower the threshold"):
        safety_rows(model, tiny_tokenizer, sets, Probe(), 50)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "phi3"])
def test_gated_models_are_taken(architecture: str) -> None:
    require_gated(NeuronMap.of(tiny.config(architecture)))


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "starcoder2", "mixtral", "qwen3_moe", "deepseek_v3"])
def test_models_without_a_gate_or_with_experts_are_refused(architecture: str) -> None:
    with pytest.raises(ArchitectureError, match="dense gated MLPs"):
        require_gated(NeuronMap.of(tiny.config(architecture)))
