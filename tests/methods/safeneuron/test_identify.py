"""Safety neurons against a transcription of the paper's definitions in numpy, on the model's own activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurofreeze.data import Example, read
from neurofreeze.data.batches import prompt_ids
from neurofreeze.methods.safeneuron import SafetyNeurons, identify
from neurofreeze.models.load import load_model
from neurofreeze.strategies.contrast import Contrast

CONTRAST = Contrast(tau_es=0.7, tau_sas=1.2)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return load_model(tiny_checkpoint, torch.float64)


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Example]]:
    return {
        "safety": read("bundled:harmful/calibration", limit=9),
        "utility": read("bundled:instructions/calibration", limit=7),
    }


@pytest.fixture(scope="module")
def found(model: Any, tiny_tokenizer: Any, sets: dict[str, list[Example]]) -> SafetyNeurons:
    return identify(model, tiny_tokenizer, sets, CONTRAST, batch_size=4)


def activations(model: Any, tokenizer: Any, examples: list[Example]) -> np.ndarray:
    """The mean over each prompt's tokens of up(h) * act(gate(h)), float64 [prompts, layers, channels]."""
    rows = []
    for example in examples:
        seen: list[np.ndarray] = []
        hooks = [
            layer.mlp.register_forward_pre_hook(
                lambda mlp, inputs, seen=seen: seen.append(
                    (mlp.up_proj(inputs[0]) * mlp.act_fn(mlp.gate_proj(inputs[0])))[0].mean(0).numpy()
                )
            )
            for layer in model.model.layers
        ]
        with torch.no_grad():
            # The space that the template puts before an answer is the answer's own token.
            ids = torch.tensor([_shared(tokenizer, example)])
            model(input_ids=ids)
        for hook in hooks:
            hook.remove()
        rows.append(np.stack(seen))
    return np.stack(rows)


def _shared(tokenizer: Any, example: Example) -> list[int]:
    prompt = prompt_ids(tokenizer, example)
    whole = tokenizer.apply_chat_template(
        [*example.messages, {"role": "assistant", "content": example.response}], tokenize=True, return_dict=False
    )
    same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return prompt[:same]


def test_es_and_sas_are_the_paper_s(
    found: SafetyNeurons, model: Any, tiny_tokenizer: Any, sets: dict[str, list[Example]]
) -> None:
    unsafe, safe = (activations(model, tiny_tokenizer, sets[role]) for role in ("safety", "utility"))
    difference = unsafe.mean(0) - safe.mean(0)
    count = len(unsafe) + len(safe) - 2
    pooled = np.sqrt(((len(unsafe) - 1) * unsafe.var(0, ddof=1) + (len(safe) - 1) * safe.var(0, ddof=1)) / count)
    es = difference / pooled > CONTRAST.tau_es
    z = (difference - difference.mean(1, keepdims=True)) / difference.std(1, keepdims=True)
    sas = (z > CONTRAST.tau_sas) & (difference > 0)

    names = [name for name in found.mask.bits if "mlp" in name]
    assert len(names) == len(es)
    for layer, name in enumerate(names):
        np.testing.assert_array_equal(found.es.bits[name], es[layer], err_msg=name)
        np.testing.assert_array_equal(found.sas.bits[name], sas[layer], err_msg=name)
        np.testing.assert_array_equal(found.mask.bits[name], es[layer] | sas[layer], err_msg=name)
    assert (es & ~sas).any()
    assert (sas & ~es).any()


def test_attention_is_left_out(found: SafetyNeurons) -> None:
    assert not any(bits.any() for name, bits in found.mask.bits.items() if "mlp" not in name)


def test_counts_and_origin_are_recorded(found: SafetyNeurons) -> None:
    counts = found.counts
    assert counts["neurons"] == counts["es"] + counts["sas"] - counts["both"] == found.mask.count
    assert found.mask.config.strategy["name"] == "safeneuron"
    assert (found.mask.config.strategy["tau_es"], found.mask.config.strategy["tau_sas"]) == (0.7, 1.2)
