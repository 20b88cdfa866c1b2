"""Selective layers under bitsandbytes' 8-bit optimizers, whose moments only the small parameters have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

import neurofreeze as nf
from neurofreeze.errors import FreezeError
from tests import reference, tiny
from tests.integrations.test_callback import Steps, trainer_of
from tests.reference import mask_for
from tests.selective_layers.twins import MODES, Train, assert_moved_where_it_may, still

# By default parameters of fewer than 4096 elements have moments in 32 bits.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    name: partial(getattr(bitsandbytes.optim, name), lr=0.05, weight_decay=0.1, min_8bit_size=1)
    for name in ("AdamW8bit", "Adam8bit", "PagedAdamW8bit", "Lion8bit", "SGD8bit")
}
OPTIMIZERS["SGD8bit"] = partial(OPTIMIZERS["SGD8bit"], momentum=0.9)
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


@pytest.fixture(autouse=True)
def _no_overrides() -> None:
    # Trainers keep embeddings' moments in 32 bits by a table of parameters' ids, which outlives their models.
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()


def trainable(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def frozen_part(mask: nf.NeuronMask, train: Train) -> nf.NeuronMask:
    return mask if train == "unmasked" else ~mask


@pytest.mark.parametrize("train", MODES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_what_trains_has_8_bit_moments(optimizer: str, train: Train) -> None:
    model = tiny.model("llama", dtype=torch.float32)
    mask = mask_for(model, fraction=0.4)
    start, frozen = reference.weights(model), still(model, mask, train)
    expected = nf.freeze(model, reference.adamw(model), frozen_part(mask, train)).fingerprint
    nf.selective(model, mask, train=train)
    stepped = OPTIMIZERS[optimizer](trainable(model))
    freezer = nf.freeze(model, stepped, frozen_part(mask, train))
    reference.train(model, stepped, reference.batches(3))

    assert freezer.check() == expected
    assert_moved_where_it_may(model, start, frozen)
    assert set(stepped.state) == set(trainable(model))
    moments = [state["state1"] for state in stepped.state.values()]
    assert {moment.dtype for moment in moments} == {torch.uint8}
    assert sum(moment.numel() for moment in moments) == sum(int((~at).sum()) for at in frozen.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masked_gradients_are_refused(optimizer: str) -> None:
    model = tiny.model("llama", dtype=torch.float32)
    with pytest.raises(FreezeError, match=rf"{optimizer} is not among the optimizers .* or nf\.selective"):
        nf.freeze(model, OPTIMIZERS[optimizer](model.parameters()), mask_for(model))


def test_a_mask_that_freezes_what_trains_beside_selective_layers_is_refused() -> None:
    model = tiny.model("llama", dtype=torch.float32)
    first, second = (in_layer(mask_for(model), layer) for layer in (0, 1))
    nf.selective(model, first, train="unmasked")
    optimizer = OPTIMIZERS["AdamW8bit"](trainable(model))
    nf.freeze(model, optimizer, first)
    with pytest.raises(FreezeError, match="AdamW8bit is not among the optimizers"):
        nf.freeze(model, optimizer, first | second)


def in_layer(mask: nf.NeuronMask, layer: int) -> nf.NeuronMask:
    bits = {site: bits & (f".{layer}." in site) for site, bits in mask.bits.items()}
    assert any(np.any(chosen) for chosen in bits.values())
    return nf.NeuronMask(bits, mask.config)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_a_trainer_freezes_saves_and_resumes_with_an_8_bit_optimizer(name: str, tiny_checkpoint: Path) -> None:
    def trained(*callbacks: TrainerCallback, **options: Any) -> Any:
        model = nf.selective(load(tiny_checkpoint), mask, train="unmasked")
        trainer = trainer_of(model, nf.FreezeCallback(mask), *callbacks, optim=name, max_steps=4, **options)
        trainer.train(resume_from_checkpoint="out/checkpoint-2" if callbacks else None)
        return trainer

    mask = mask_for(load(tiny_checkpoint))
    whole = trained(save_strategy="steps", save_steps=2)
    assert "bitsandbytes" in type(whole.optimizer.optimizer).__module__
    found = nf.verify(tiny_checkpoint, "out/checkpoint-4", mask)
    assert found.ok, str(found)
    assert found.trainable_changed > 10_000
    steps = Steps()
    resumed = trained(steps)
    assert steps.taken == [3, 4]
    other = resumed.model.state_dict()
    for path, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, other[path]), path


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
