"""Selective layers in transformers and TRL trainers: in one process, and launched by accelerate on two gloo ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer
from trl import SFTConfig, SFTTrainer

import neurofreeze as nf
from neurofreeze.verification import weights_fingerprint
from tests import reference
from tests.integrations.test_callback import Steps, trainer_of
from tests.integrations.test_launch import launch
from tests.reference import mask_for
from tests.selective_layers.twins import MODES, Train, assert_moved_where_it_may, still


def load(folder: Path | str) -> Any:
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(found[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def frozen_part(mask: nf.NeuronMask, train: Train) -> nf.NeuronMask:
    return mask if train == "unmasked" else ~mask


@pytest.mark.parametrize("train", MODES)
def test_a_trainer_saves_ordinary_checkpoints_and_resumes_from_them(train: Train, tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    mask = mask_for(model)
    start, frozen = reference.weights(model), still(model, mask, train)
    trainer = trainer_of(nf.selective(model, mask, train=train), max_steps=4, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    assert_moved_where_it_may(model, start, frozen)
    for folder in ("out", "out/checkpoint-2", "out/checkpoint-4"):
        outcome = nf.verify(tiny_checkpoint, folder, frozen_part(mask, train))
        assert outcome.ok, str(outcome)
        assert outcome.only_in_one == []
        load(folder)

    steps = Steps()
    again = trainer_of(nf.selective(load(tiny_checkpoint), mask, train=train), steps, max_steps=4)
    again.train(resume_from_checkpoint="out/checkpoint-2")
    assert steps.taken == [3, 4]
    for (name, tensor), other in zip(model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_a_trainer_under_a_dense_mask_takes_the_same_way(tiny_checkpoint: Path) -> None:
    dense, model = load(tiny_checkpoint), load(tiny_checkpoint)
    mask = mask_for(model)
    trainer_of(dense, nf.FreezeCallback(mask)).train()
    trainer_of(nf.selective(model, mask, train="unmasked")).train()
    for (name, tensor), other in zip(dense.state_dict().items(), model.state_dict().values(), strict=True):
        assert (tensor - other).abs().max() <= 1e-5, name


def test_trained_biases_decay_as_biases_do(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    trainer = trainer_of(nf.selective(model, mask_for(model), train="unmasked"))
    decayed, kept = ({id(p) for p in group["params"]} for group in trainer.create_optimizer().param_groups)
    names = {name: id(p) for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, found in names.items() if found in kept} == {
        name for name in names if "bias" in name or "norm" in name
    }
    assert any(name.endswith("bias_trained") for name in names)
    assert decayed | kept == set(names.values())


def test_sft_trains_saves_and_verifies(tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    from datasets import Dataset

    model = load(tiny_checkpoint)
    mask = mask_for(model)
    rows = [{"prompt": f"Question {i}?", "completion": "An answer, then."} for i in range(8)]
    trainer: Trainer = SFTTrainer(
        nf.selective(model, mask, train="masked"),
        SFTConfig("out", max_steps=2, learning_rate=0.05, use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    trainer.train()
    trainer.save_model()
    outcome = nf.verify(tiny_checkpoint, "out", ~mask)
    assert outcome.ok, str(outcome)
    assert outcome.trainable_changed > 5_000
    load("out")


_FP32 = {"parameters": ["Parameter"], "dtypes": ["torch.float32"], "zero_stage": None, "optimizer": "AdamW"}
_ZERO = {**_FP32, "wrapper": "DeepSpeedEngine", "dtypes": ["torch.bfloat16"]}
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {**_FP32, "wrapper": "DistributedDataParallel"},
    "fsdp2": {**_FP32, "wrapper": "FSDPLlamaForCausalLM", "parameters": ["DTensor"]},
    "zero1": {**_ZERO, "zero_stage": 1},
    "zero2": {**_ZERO, "zero_stage": 2},
    "zero3": {**_ZERO, "zero_stage": 3, "offloaded": []},
    "zero3-offload": {
        **_ZERO,
        "zero_stage": 3,
        "offloaded": ["offload_optimizer", "offload_param"],
        "optimizer": "DeepSpeedCPUAdam",
    },
}


@pytest.fixture(scope="module")
def mask(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = mask_for(load(tiny_checkpoint))
    folder = tmp_path_factory.mktemp("masks") / "mask"
    chosen.with_config(fingerprint=weights_fingerprint(tiny_checkpoint, chosen)).save_pretrained(folder)
    return folder


# accelerate widens what trains under FSDP2, and leaves the rest as loaded.
WIDENED = {"dtypes": ["torch.bfloat16", "torch.float32"]}


def ways(config: str) -> list[tuple[str, Train, str]]:
    """Trainer, what it trains, and in what precision."""
    more: list[tuple[str, Train, str]] = [("plain", train, "bfloat16") for train in MODES]
    return [("sft", "masked", "float32"), ("plain", "unmasked", "float32"), *(more if config == "fsdp2" else [])]


Launched = tuple[Path, dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def launched(tiny_checkpoint: Path, mask: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Launched]:
    """Config -> where all its ways were trained and then resumed, in two launches, and what they reported each time."""
    script = Path(__file__).with_name("launched_selective.py")

    @cache
    def launch_all(config: str) -> Launched:
        folder = tmp_path_factory.mktemp("launched")
        options = ("--way", *(" ".join(way) for way in ways(config)))
        given = (config, tiny_checkpoint, mask)
        tuned = launch(*given, folder / "tuned", *options, script=script)
        resumed = launch(*given, folder / "resumed", *options, "--resume", str(folder / "tuned"), script=script)
        return folder, tuned, resumed

    return launch_all


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "trainer", "train", "dtype"), [(config, *way) for config in RUNS for way in ways(config)]
)
def test_launched_trainers_save_ordinary_checkpoints_and_resume_from_them(
    config: str,
    trainer: str,
    train: Train,
    dtype: str,
    launched: Callable[[str], Launched],
    tiny_checkpoint: Path,
    mask: Path,
) -> None:
    folder, *reports = launched(config)
    way = f"{trainer} {train} {dtype}"
    tuned, resumed = folder / "tuned" / way, folder / "resumed" / way
    ran, ran_again = (found[way] for found in reports)
    expected = {
        **RUNS[config],
        **(WIDENED if dtype == "bfloat16" else {}),
        "mixed_precision": "bf16",
        "processes": 2,
        "steps": 4,
    }
    assert {key: ran[key] for key in expected} == expected

    chosen = nf.NeuronMask.from_pretrained(mask)
    frozen = still(load(tiny_checkpoint), chosen, train)
    assert ran["trainable"] == sum(int((~at).sum()) for at in frozen.values())
    for saved in (tuned, tuned / "checkpoint-2", tuned / "checkpoint-4"):
        outcome = nf.verify(tiny_checkpoint, saved, frozen_part(chosen, train))
        assert outcome.ok, str(outcome)
        assert outcome.frozen > 5_000
        # accelerate writes tied weights twice where it gathers them, of ordinary models too.
        assert set(outcome.only_in_one) <= {"lm_head.weight"}
        load(saved)
    assert_only_the_rest_moved(tiny_checkpoint, tuned, frozen)

    assert ran_again["steps"] == 4
    once, twice = load(tuned), load(resumed)
    # An ordinary model does not resume to the bit with DeepSpeedCPUAdam under ZeRO-3 either; and what accelerate widens
    # torch rounds to the precision of the frozen part when it hands a whole state dict out to the ranks.
    rounded = config == "zero3-offload" or dtype == "bfloat16"
    for (name, p), q in zip(once.named_parameters(), twice.parameters(), strict=True):
        assert torch.equal(p, q) or (rounded and (p - q).abs().mean() < 0.005), name


def assert_only_the_rest_moved(base: Path, tuned: Path, frozen: reference.Dense) -> None:
    before, now = (dict(load(folder).named_parameters()) for folder in (base, tuned))
    moved = total = 0
    for name, at in frozen.items():
        assert torch.equal(reference.bits(now[name][at]), reference.bits(before[name][at])), name
        moved, total = moved + int((now[name] != before[name])[~at].sum()), total + int((~at).sum())
    assert moved > total // 2
