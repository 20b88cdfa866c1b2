"""The freezer on a model with selective layers: it checks what they keep frozen, and trainers resume by its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from neurofreeze import FreezeCallback, FreezeError, NeuronMap, NeuronMask, freeze, selective
from tests import reference, tiny


def _mask(model: Any, seed: int = 0) -> NeuronMask:
    return NeuronMask.random(NeuronMap.of(model), 0.7, seed)


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)


def _train(model: Any, optimizer: torch.optim.Optimizer) -> None:
    for micro_batches in reference.batches(2):
        reference.backward(model, micro_batches)
        optimizer.step()
        optimizer.zero_grad()


def test_the_frozen_bits_of_a_selective_model_are_checked() -> None:
    model = tiny.model()
    mask = _mask(model)
    expected = freeze(model, _optimizer(model), mask).fingerprint
    selective(model, mask, train="unmasked")
    optimizer = _optimizer(model)
    freezer = freeze(model, optimizer, mask)
    assert freezer.fingerprint == expected
    _train(model, optimizer)
    assert freezer.check() == expected


def test_a_changed_frozen_bit_is_found() -> None:
    model = tiny.model()
    mask = _mask(model)
    selective(model, mask, train="unmasked")
    freezer = freeze(model, _optimizer(model), mask)
    name, selection = next((n, s) for n, s in mask.select(NeuronMap.of(model)).items() if s.axis == 0)
    model.get_submodule(name.rpartition(".")[0])._parameters["weight"].data[selection.index[0]] += 1
    with pytest.raises(FreezeError, match="frozen elements changed"):
        freezer.check()


def test_what_train_masked_leaves_out_is_what_the_inverted_mask_freezes() -> None:
    model = tiny.model()
    mask = _mask(model)
    selective(model, mask, train="masked")
    optimizer = _optimizer(model)
    freezer = freeze(model, optimizer, ~mask)
    _train(model, optimizer)
    freezer.check()


def test_a_mask_that_selective_layers_train_is_refused() -> None:
    model = tiny.model()
    mask = _mask(model)
    selective(model, mask, train="masked")
    with pytest.raises(FreezeError, match=r"selective layers train \d+ lines of .* that the mask freezes"):
        freeze(model, _optimizer(model), mask)


def test_a_trainer_resumes_with_the_same_mask_only(tmp_path: Path) -> None:
    def trainer(mask: NeuronMask, steps: int) -> Trainer:
        model = selective(tiny.model(dtype=torch.float32), mask, train="unmasked")
        rows = [
            {"input_ids": ids[0].tolist(), "labels": ids[0].tolist()} for (ids,) in reference.batches(8, size=(1, 7))
        ]
        arguments = TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=2, use_cpu=True, report_to="none", disable_tqdm=True
        )
        return Trainer(model, arguments, train_dataset=Dataset.from_list(rows), callbacks=[FreezeCallback(mask)])

    mask = _mask(tiny.model())
    trainer(mask, 2).train()
    trainer(mask, 4).train(resume_from_checkpoint=True)
    with pytest.raises(FreezeError, match="resume with the checkpoint's mask"):
        trainer(_mask(tiny.model(), seed=1), 6).train(resume_from_checkpoint=True)
