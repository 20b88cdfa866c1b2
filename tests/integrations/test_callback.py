"""FreezeCallback in a real transformers Trainer, on the tiny checkpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from neurofreeze.errors import FreezeError, MaskError
from neurofreeze.integrations.callback import FreezeCallback
from neurofreeze.mask import NeuronMask
from neurofreeze.verification import verify, weights_fingerprint
from tests import reference, tiny
from tests.reference import assert_frozen, assert_no_moments, mask_for

if TYPE_CHECKING:
    from pathlib import Path

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model(tiny_checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)


@pytest.fixture
def mask(model: Any) -> NeuronMask:
    return mask_for(model)


def trainer_of(model: Any, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    rows = [ids for (ids,) in reference.batches(8, size=(1, 9))]
    settings = TrainingArguments(
        output_dir="out",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.05,
        weight_decay=0.1,
        max_grad_norm=0.5,
        **{"max_steps": 3, "save_strategy": "no", **options},
    )
    data = [{"input_ids": ids[0], "labels": ids[0]} for ids in rows]
    return Trainer(model=model, args=settings, train_dataset=data, callbacks=list(callbacks))


class Meddler(TrainerCallback):
    """Writes one frozen weight at the end of a step, as a careless callback might."""

    def __init__(self, model: Any, mask: NeuronMask, step: int) -> None:
        self.weight = dict(model.named_parameters())[UP]
        self.place = tuple(reference.dense(model, mask)[UP].nonzero()[0].tolist())
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.weight.data[self.place] += 1e-3


class Steps(TrainerCallback):
    """Remembers which steps were taken."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.taken.append(state.global_step)


def test_training_leaves_frozen_bits_as_they_were(model: Any, mask: NeuronMask) -> None:
    frozen, start = reference.dense(model, mask), reference.weights(model)
    trainer = trainer_of(model, FreezeCallback(mask))
    trainer.train()
    assert trainer.state.global_step == 3
    assert_frozen(model, start, frozen)
    assert_no_moments(model, trainer.optimizer.optimizer, frozen)
    for name, p in model.named_parameters():
        assert frozen[name].all() or not torch.equal(p, start[name]), name


def test_training_without_the_callback_would_move_them(model: Any, mask: NeuronMask) -> None:
    frozen, start = reference.dense(model, mask), reference.weights(model)
    trainer_of(model).train()
    with pytest.raises(AssertionError):
        assert_frozen(model, start, frozen)


def test_frozen_gradients_are_zero_before_every_step(model: Any, mask: NeuronMask) -> None:
    frozen = reference.dense(model, mask)
    seen: list[torch.Tensor] = []

    class Recorder(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            total = sum(p.grad[frozen[name]].abs().sum() for name, p in model.named_parameters())
            seen.append(torch.as_tensor(total))

    trainer_of(model, FreezeCallback(mask), Recorder()).train()
    assert len(seen) == 3
    assert not any(total.any() for total in seen)


def test_a_saved_checkpoint_verifies_against_the_base(model: Any, mask: NeuronMask, tiny_checkpoint: Path) -> None:
    callback = FreezeCallback(mask)
    trainer = trainer_of(model, callback, save_strategy="steps", save_steps=2)
    trainer.train()
    for folder in ("out/checkpoint-2", "out/checkpoint-3"):
        found = verify(tiny_checkpoint, folder, mask)
        assert found.ok
        assert found.trainable_changed > 0
        assert callback.freezer is not None
        assert found.tuned_fingerprint == callback.freezer.fingerprint


def test_a_resumed_training_continues_and_stays_frozen(model: Any, mask: NeuronMask, tiny_checkpoint: Path) -> None:
    made_on = mask.with_config(fingerprint=weights_fingerprint(tiny_checkpoint, mask))
    trainer_of(model, FreezeCallback(made_on), save_strategy="steps", save_steps=2).train()

    again = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    frozen, start = reference.dense(again, mask), reference.weights(again)
    steps = Steps()
    resumed = trainer_of(again, FreezeCallback(made_on), steps)
    resumed.train(resume_from_checkpoint="out/checkpoint-2")
    assert steps.taken == [3]
    assert_frozen(again, start, frozen)
    assert_no_moments(again, resumed.optimizer.optimizer, frozen)
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_without_a_mask_the_checkpoint_s_is_taken(model: Any, mask: NeuronMask, tiny_checkpoint: Path) -> None:
    trainer_of(model, FreezeCallback(mask), save_strategy="steps", save_steps=2).train()
    again = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    callback = FreezeCallback()
    trainer_of(again, callback).train(resume_from_checkpoint="out/checkpoint-2")
    assert callback.freezer is not None
    assert callback.freezer.mask == mask
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_without_a_mask_a_new_run_is_refused(model: Any) -> None:
    with pytest.raises(MaskError, match="was given no mask"):
        trainer_of(model, FreezeCallback()).train()


def test_the_trainer_may_restore_the_callback(model: Any, mask: NeuronMask, tiny_checkpoint: Path) -> None:
    trainer_of(model, FreezeCallback(mask, check_every=2), save_strategy="steps", save_steps=2).train()
    again = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    frozen, start = reference.dense(again, mask), reference.weights(again)
    resumed = trainer_of(again, FreezeCallback(mask), restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint="out/checkpoint-2")
    assert resumed.state.global_step == 3
    assert_frozen(again, start, frozen)


def test_resuming_with_another_mask_is_refused(model: Any, mask: NeuronMask, tiny_checkpoint: Path) -> None:
    trainer_of(model, FreezeCallback(mask), save_strategy="steps", save_steps=2).train()
    again = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    trainer = trainer_of(again, FreezeCallback(mask_for(again, seed=2)))
    with pytest.raises(FreezeError, match="resume with the checkpoint's mask"):
        trainer.train(resume_from_checkpoint="out/checkpoint-2")


def test_two_masks_resume_each_with_its_own(model: Any, mask: NeuronMask, tiny_checkpoint: Path) -> None:
    other = mask_for(model, seed=2)
    trainer_of(model, FreezeCallback(mask), FreezeCallback(other), save_strategy="steps", save_steps=2).train()
    again = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    frozen, start = reference.dense(again, mask | other), reference.weights(again)
    resumed = trainer_of(again, FreezeCallback(other), FreezeCallback(mask))
    resumed.train(resume_from_checkpoint="out/checkpoint-2")
    assert_frozen(again, start, frozen)


def test_resuming_from_a_checkpoint_in_which_a_frozen_bit_changed_is_refused(
    model: Any, mask: NeuronMask, tiny_checkpoint: Path
) -> None:
    trainer_of(model, FreezeCallback(mask), save_strategy="steps", save_steps=2).train()
    saved = load_file("out/checkpoint-2/model.safetensors")
    saved[UP][tuple(reference.dense(model, mask)[UP].nonzero()[0])] += 1e-3
    save_file(saved, "out/checkpoint-2/model.safetensors", metadata={"format": "pt"})
    again = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    trainer = trainer_of(again, FreezeCallback(mask))
    with pytest.raises(FreezeError, match="frozen elements changed"):
        trainer.train(resume_from_checkpoint="out/checkpoint-2")
    assert trainer.state.global_step == 2


def test_resuming_a_training_in_which_nothing_was_frozen_is_refused(model: Any, mask: NeuronMask) -> None:
    trainer_of(model, save_strategy="steps", save_steps=2).train()
    trainer = trainer_of(model, FreezeCallback(mask))
    with pytest.raises(FreezeError, match="the checkpoint carries no mask"):
        trainer.train(resume_from_checkpoint="out/checkpoint-2")


def test_the_cost_of_checking_is_told_at_the_end(
    model: Any, mask: NeuronMask, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer_of(model, FreezeCallback(mask, check_every=1)).train()
    assert "frozen neurons: intact in all 4 checks, which took 0." in capsys.readouterr().out


def test_resuming_from_another_training_is_refused(model: Any, mask: NeuronMask, tiny_checkpoint: Path) -> None:
    trainer_of(model, save_strategy="steps", save_steps=3).train()  # nothing frozen
    made_on = mask.with_config(fingerprint=weights_fingerprint(tiny_checkpoint, mask))
    again = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    trainer = trainer_of(again, FreezeCallback(made_on), max_steps=4)
    with pytest.raises(MaskError, match="field 'fingerprint'"):
        trainer.train(resume_from_checkpoint="out/checkpoint-3")


def test_a_frozen_weight_written_by_another_callback_stops_at_the_end(model: Any, mask: NeuronMask) -> None:
    trainer = trainer_of(model, FreezeCallback(mask), Meddler(model, mask, step=2))
    with pytest.raises(FreezeError, match="frozen elements changed"):
        trainer.train()
    assert trainer.state.global_step == 3


def test_a_frozen_weight_written_by_another_callback_stops_at_the_next_save(model: Any, mask: NeuronMask) -> None:
    trainer = trainer_of(model, FreezeCallback(mask), Meddler(model, mask, step=1), save_strategy="steps", save_steps=2)
    with pytest.raises(FreezeError, match="frozen elements changed"):
        trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(("check_every", "stops_at"), [(1, 1), (2, 2)])
def test_a_frozen_weight_written_by_another_callback_stops_at_the_next_check(
    check_every: int, stops_at: int, model: Any, mask: NeuronMask
) -> None:
    trainer = trainer_of(model, Meddler(model, mask, step=1), FreezeCallback(mask, check_every))
    with pytest.raises(FreezeError, match="frozen elements changed"):
        trainer.train()
    assert trainer.state.global_step == stops_at


def test_training_anew_does_not_accept_what_changed_before(model: Any, mask: NeuronMask) -> None:
    trainer = trainer_of(model, FreezeCallback(mask, check_every=1), Meddler(model, mask, step=1))
    with pytest.raises(FreezeError, match="frozen elements changed"):
        trainer.train()
    for _ in range(2):
        with pytest.raises(FreezeError, match="changed while another freezer held them"):
            trainer.train()


def test_a_mask_for_another_model_stops_before_the_first_step(model: Any, mask: NeuronMask) -> None:
    trainer = trainer_of(model, FreezeCallback(mask_for(tiny.config("llama", intermediate_size=71))))
    with pytest.raises(MaskError, match="made for another model"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_engines_that_are_not_verified_are_refused_by_name(
    model: Any, mask: NeuronMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = FreezeCallback(mask)
    trainer = trainer_of(model)
    trainer.create_optimizer()
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType.MEGATRON_LM)
    with pytest.raises(FreezeError, match="freezing under MEGATRON_LM is not verified yet"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=model, optimizer=trainer.optimizer)


def test_data_parallel_is_refused(model: Any, mask: NeuronMask) -> None:
    trainer = trainer_of(model, FreezeCallback(mask))
    trainer.args._n_gpu = 2
    with pytest.raises(FreezeError, match=r"under DataParallel is not verified.*sees 2 GPUs"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_fsdp1_is_refused(model: Any, mask: NeuronMask, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = FreezeCallback(mask)
    trainer = trainer_of(model)
    trainer.create_optimizer()
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType.FSDP)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", plugin)
    with pytest.raises(FreezeError, match="FSDP1 is not verified yet; set fsdp_version to 2"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=model, optimizer=trainer.optimizer)


def test_deepcompile_is_refused(model: Any, mask: NeuronMask, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = FreezeCallback(mask)
    trainer = trainer_of(model)
    plugin = SimpleNamespace(deepspeed_config={"compile": {"deepcompile": True}})
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType.DEEPSPEED)
    monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", property(lambda _: plugin))
    with pytest.raises(FreezeError, match="DeepCompile bypasses gradient hooks"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=model, optimizer=None)


def test_a_callback_added_too_late_says_so(model: Any, mask: NeuronMask) -> None:
    trainer = trainer_of(model)
    callback = FreezeCallback(mask, check_every=1)
    trainer.state.global_step = 1
    for event in (callback.on_step_end, callback.on_save, callback.on_train_end):
        with pytest.raises(FreezeError, match="without on_train_begin"):
            event(trainer.args, trainer.state, trainer.control)


def test_after_training_the_model_is_free_again(model: Any, mask: NeuronMask) -> None:
    trainer_of(model, FreezeCallback(mask)).train()
    frozen, start = reference.dense(model, mask), reference.weights(model)
    optimizer = reference.adamw(model)
    reference.train(model, optimizer, reference.batches(1))
    with pytest.raises(AssertionError):
        assert_frozen(model, start, frozen)
