"""Fine-tuning something other than the weights: only it is optimized, and the output is an ordinary checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from neurofreeze.config.schema import TrainingConfig
from neurofreeze.data import Example, read
from neurofreeze.errors import RunError
from neurofreeze.methods.nest.choice import Rows, Updates
from neurofreeze.models.load import load_model
from neurofreeze.training.adaptation import Adaptation, LoRA, UpdateVectors
from neurofreeze.training.sft import fine_tune

CONFIG = TrainingConfig(steps=2, batch_size=2, learning_rate=0.1, warmup_steps=0, max_length=48, bf16="false")
NAME = "model.layers.1.mlp.up_proj.weight"
VECTORS = UpdateVectors(Updates({NAME: Rows(np.array([2, 5, 6]), np.array([0, 1, 0]))}))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return read("bundled:retail_bank/train", limit=6)


@pytest.mark.parametrize(("adaptation", "optimized"), [(VECTORS, 72), (LoRA(4), 4 * 2 * (2 * 72 + 2 * 48 + 3 * 106))])
def test_only_the_adaptation_is_optimized_and_it_is_merged_once(
    adaptation: Adaptation, optimized: int, tiny_checkpoint: Path, examples: list[Example], tmp_path: Path
) -> None:
    result = fine_tune(tiny_checkpoint, tmp_path / "out", examples, CONFIG, seed=0, adaptation=adaptation)
    assert result.optimized == optimized
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tmp_path / "out"))
    assert {name: (t.shape, t.dtype) for name, t in before.items()} == {
        name: (t.shape, t.dtype) for name, t in after.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if adaptation is VECTORS:
        assert changed == {NAME}
    else:
        assert changed == {name for name in before if name.endswith("_proj.weight")}


def test_without_one_everything_is_optimized(tiny_checkpoint: Path, examples: list[Example], tmp_path: Path) -> None:
    result = fine_tune(tiny_checkpoint, tmp_path / "out", examples, replace(CONFIG, steps=1), seed=0)
    assert result.optimized == sum(p.numel() for p in load_model(tiny_checkpoint).parameters())


def test_adapters_start_by_their_seed(tiny_checkpoint: Path) -> None:
    def start(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(torch.randint(100, ()).item())
        return [p for p in LoRA(4, seed).attach(load_model(tiny_checkpoint)).parameters() if p.requires_grad]

    first, same, other = start(1), start(1), start(2)
    assert all(torch.equal(p, q) for p, q in zip(first, same, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(first, other, strict=True))


def test_a_checkpoint_of_another_adaptation_is_not_gone_on_from(
    tiny_checkpoint: Path, examples: list[Example], tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise RuntimeError("stop")

    def run(adaptation: Adaptation | None) -> None:
        fine_tune(tiny_checkpoint, tmp_path / "out", examples, config, seed=0, adaptation=adaptation, progress=stop)

    config = replace(CONFIG, save_steps=1)
    with pytest.raises(RuntimeError, match="stop"):
        run(VECTORS)
    for other in (None, LoRA(4), UpdateVectors(Updates({NAME: Rows(np.array([2]), np.array([0]))}))):
        with pytest.raises(RunError, match=r"adaptation was 'update vectors .*', is"):
            run(other)
    assert LoRA(4).identity != LoRA(4, seed=1).identity
