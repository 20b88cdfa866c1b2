"""FreezeCallback where TRL's SFTTrainer trains LoRA adapters, on the tiny checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from neurofreeze import FreezeCallback, FreezeError, NeuronMask, verify
from neurofreeze.verification import weights_fingerprint
from tests import lora
from tests.integrations.launched import ROWS
from tests.integrations.test_launch import RUNS, launch
from tests.reference import mask_for


@pytest.fixture
def mask(tiny_checkpoint: Path) -> NeuronMask:
    chosen = mask_for(load(tiny_checkpoint))
    return chosen.with_config(fingerprint=weights_fingerprint(tiny_checkpoint, chosen))


def load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)


def trainer_of(base: Path, *callbacks: Any, model: Any = None, **options: Any) -> SFTTrainer:
    args = SFTConfig(
        output_dir="out",
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.05,
        weight_decay=0.1,
        max_grad_norm=0.5,
        save_steps=2,
        **{"max_steps": 3, **options},
    )
    return SFTTrainer(
        model=load(base) if model is None else model,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1),
        callbacks=list(callbacks),
    )


def merged(base: Path, adapter: str | Path, folder: Path) -> Path:
    """Merge a saved adapter as a user does, into a checkpoint of its own."""
    PeftModel.from_pretrained(load(base), adapter).merge_and_unload().save_pretrained(folder)
    return folder


def test_a_merged_checkpoint_verifies_against_the_base(
    tiny_checkpoint: Path, mask: NeuronMask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = FreezeCallback(mask, check_every=1)
    trainer = trainer_of(tiny_checkpoint, callback)
    assert isinstance(trainer.model, PeftModel)
    trainer.train()
    for step in (2, 3):
        found = verify(tiny_checkpoint, merged(tiny_checkpoint, f"out/checkpoint-{step}", tmp_path / str(step)), mask)
        assert found.ok, str(found)
        assert found.frozen > 5_000
        assert found.trainable_changed > 1_000
        assert callback.freezer is not None
        assert found.tuned_fingerprint == callback.freezer.fingerprint
    assert "frozen neurons: intact in all 6 checks" in capsys.readouterr().out


def test_without_the_callback_it_would_not(tiny_checkpoint: Path, mask: NeuronMask, tmp_path: Path) -> None:
    trainer_of(tiny_checkpoint).train()
    found = verify(tiny_checkpoint, merged(tiny_checkpoint, "out/checkpoint-3", tmp_path / "merged"), mask)
    assert not found.ok
    assert found.changed > 1_000


def test_a_resumed_training_goes_on_as_if_never_interrupted(tiny_checkpoint: Path, mask: NeuronMask) -> None:
    whole = trainer_of(tiny_checkpoint, FreezeCallback(mask))
    whole.train()
    callback = FreezeCallback()  # the checkpoint's mask
    resumed = trainer_of(tiny_checkpoint, callback)
    resumed.train(resume_from_checkpoint="out/checkpoint-2")
    assert callback.mask is None
    assert callback.freezer is not None
    assert callback.freezer.mask == mask
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert len(lora.trainable(resumed.model)) == 28


def test_resuming_an_adapter_that_was_trained_without_freezing_is_refused(
    tiny_checkpoint: Path, mask: NeuronMask
) -> None:
    trainer_of(tiny_checkpoint).train()
    resumed = trainer_of(tiny_checkpoint, FreezeCallback(mask))
    with pytest.raises(FreezeError, match="the adapter changes frozen neurons already"):
        resumed.train(resume_from_checkpoint="out/checkpoint-2")


def test_resuming_on_another_base_is_refused(tiny_checkpoint: Path, mask: NeuronMask, tmp_path: Path) -> None:
    anonymous = mask.with_config(fingerprint=None)
    trainer_of(tiny_checkpoint, FreezeCallback(anonymous)).train()
    other = load(tiny_checkpoint)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "other")
    resumed = trainer_of(tmp_path / "other", FreezeCallback(anonymous))
    with pytest.raises(FreezeError, match="frozen elements changed: their fingerprint is"):
        resumed.train(resume_from_checkpoint="out/checkpoint-2")


LAUNCHED = ("ddp", "fsdp2", "zero2", "zero3")


@pytest.mark.slow
@pytest.mark.parametrize("config", LAUNCHED)
def test_launched_on_two_ranks_a_merged_checkpoint_verifies(
    config: str, tiny_checkpoint: Path, mask: NeuronMask, tmp_path: Path
) -> None:
    mask.save_pretrained(tmp_path / "mask")
    ran = launch(config, tiny_checkpoint, tmp_path / "mask", tmp_path / "tuned", "--trainer", "lora")["lora"]
    expected = {"engine": RUNS[config]["engine"], "zero_stage": RUNS[config]["zero_stage"], "processes": 2, "steps": 3}
    assert {key: ran[key] for key in expected} == expected
    found = verify(tiny_checkpoint, merged(tiny_checkpoint, tmp_path / "tuned" / "lora", tmp_path / "merged"), mask)
    assert found.ok, str(found)
    assert found.trainable_changed > 1_000
    assert ran["fingerprint"] == found.base_fingerprint == found.tuned_fingerprint
