"""Fine-tuning: frozen bits stay, the loss is TRL's own, and an output folder means a complete fine-tune."""

from __future__ import annotations

import errno
import math
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from neurofreeze.config.backend import BackendConfig
from neurofreeze.config.schema import TrainingConfig
from neurofreeze.data import Example, read
from neurofreeze.errors import ConfigError, DataError, FreezeError, RunError
from neurofreeze.integrations.callback import FreezeCallback
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.training.backends import Backend
from neurofreeze.training.checkpointing import Checkpoints
from neurofreeze.training.fitting import TrainingResult, identity
from neurofreeze.training.sft import Supervised, fine_tune
from neurofreeze.training.stopping import Stopped, StopSignals
from neurofreeze.training.trainer import SupervisedTrainer, arguments, row
from neurofreeze.verification import verify, weights_fingerprint

CONFIG = TrainingConfig(steps=3, batch_size=2, learning_rate=1e-2, warmup_steps=0, max_length=48, bf16="false")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return read("bundled:retail_bank/train", limit=12)


@pytest.fixture(scope="module")
def mask(tiny_checkpoint: Path) -> NeuronMask:
    return NeuronMask.random(NeuronMap.of(load_config(tiny_checkpoint)), 0.3, seed=1)


@pytest.fixture(scope="module")
def tuned(
    tiny_checkpoint: Path, mask: NeuronMask, examples: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainingResult, list[dict[str, Any]]]:
    """A frozen fine-tune: its folder, its result, and what it logged."""
    output, logged = tmp_path_factory.mktemp("tuned") / "frozen", []
    result = fine_tune(tiny_checkpoint, output, examples, CONFIG, seed=0, mask=mask, log=logged.append)
    return output, result, logged


def test_a_base_whose_frozen_weights_would_be_rounded_when_saved_is_refused(
    tiny_checkpoint: Path, mask: NeuronMask, examples: list[Example], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    stored = {name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(stored, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"stored as F32, but its config\.json says torch\.bfloat16"):
        fine_tune(base, tmp_path / "tuned", examples, CONFIG, seed=0, mask=mask)


def test_frozen_bits_are_the_base_s_and_others_are_not(tuned: Any, tiny_checkpoint: Path, mask: NeuronMask) -> None:
    found = verify(tiny_checkpoint, tuned[0], mask)
    assert found.changed == 0
    assert found.frozen > 5000
    assert found.trainable_changed > 0.9 * found.trainable


def test_the_output_has_the_base_s_precision_and_names(tuned: Any, tiny_checkpoint: Path) -> None:
    base, output = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tuned[0]))
    assert {name: (t.dtype, t.shape) for name, t in output.items()} == {
        name: (t.dtype, t.shape) for name, t in base.items()
    }
    assert {t.dtype for t in output.values()} == {torch.bfloat16}


def test_the_tokenizer_goes_with_the_weights(tuned: Any, tiny_checkpoint: Path) -> None:
    text = "user: Where is my card?</s>"
    assert load_tokenizer(tuned[0])(text) == load_tokenizer(tiny_checkpoint)(text)
    assert load_tokenizer(tuned[0]).chat_template == load_tokenizer(tiny_checkpoint).chat_template


def test_a_loss_is_logged_for_every_step(tuned: Any) -> None:
    _, result, logged = tuned
    assert [row["global_step"] for row in logged] == [1, 2, 3]
    assert result.losses == [(row["global_step"], row["loss"]) for row in logged]
    assert all(0 < loss < 20 for _, loss in result.losses)
    assert result.seconds > 0


def test_a_loss_that_is_not_a_number_is_told(tiny_checkpoint: Path, examples: list[Example], tmp_path: Path) -> None:
    config = replace(CONFIG, learning_rate=1e38, max_grad_norm=1e38)
    (_, first), *others = fine_tune(tiny_checkpoint, tmp_path / "out", examples, config, seed=0).losses
    assert first < 20
    assert others
    assert all(math.isnan(loss) for _, loss in others)


def test_the_fingerprint_is_that_of_the_base_s_frozen_elements_in_float32(
    tuned: Any, tiny_checkpoint: Path, mask: NeuronMask, tmp_path: Path
) -> None:
    load_model(tiny_checkpoint, torch.float32).save_pretrained(tmp_path / "wide")
    assert tuned[1].fingerprint == weights_fingerprint(tmp_path / "wide", mask)


def test_without_a_mask_everything_is_trained(
    tuned: Any, tiny_checkpoint: Path, mask: NeuronMask, examples: list[Example], tmp_path: Path
) -> None:
    result = fine_tune(tiny_checkpoint, tmp_path / "full", examples, CONFIG, seed=0)
    found = verify(tiny_checkpoint, tmp_path / "full", mask)
    assert found.changed > 0.9 * found.frozen
    assert result.fingerprint is None
    assert result.losses[0] == tuned[1].losses[0], "the first step starts from the same weights and batch"
    assert result.losses[-1] != tuned[1].losses[-1]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    tuned: Any, tiny_checkpoint: Path, mask: NeuronMask, examples: list[Example], tmp_path: Path
) -> None:
    for seed in (0, 1):
        fine_tune(tiny_checkpoint, tmp_path / str(seed), examples, CONFIG, seed=seed, mask=mask)
    first, same, other = (
        (folder / "model.safetensors").read_bytes() for folder in (tuned[0], tmp_path / "0", tmp_path / "1")
    )
    assert first == same
    assert first != other


def test_the_output_appears_only_when_complete(
    tiny_checkpoint: Path,
    mask: NeuronMask,
    examples: list[Example],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, seen, flushed = tmp_path / "out", [], []

    def flush(folder: Path) -> None:
        flushed.append((folder.name, (folder / "model.safetensors").is_file(), output.exists()))

    monkeypatch.setattr("neurofreeze.training.fitting.sync_tree", flush)

    def progress(done: int, total: int) -> None:
        assert not output.exists()
        seen.append((done, total))

    fine_tune(tiny_checkpoint, output, examples, CONFIG, seed=0, mask=mask, progress=progress)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert flushed == [("final", True, False)]  # before it appears
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]
    assert not list(output.glob("checkpoint-*"))


def test_a_fine_tune_that_fails_leaves_no_output(
    tiny_checkpoint: Path, examples: list[Example], tmp_path: Path
) -> None:
    def progress(done: int, total: int) -> None:
        if done == 2:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fine_tune(tiny_checkpoint, tmp_path / "out", examples, CONFIG, seed=0, progress=progress)
    assert not (tmp_path / "out").exists()


def test_a_save_that_fails_halfway_leaves_no_output(
    tiny_checkpoint: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        fine_tune(tiny_checkpoint, tmp_path / "out", examples, replace(CONFIG, steps=1), seed=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_fine_tune_goes_on_from_its_last_checkpoint_to_the_same_bits(
    tuned: Any, tiny_checkpoint: Path, mask: NeuronMask, examples: list[Example], tmp_path: Path
) -> None:
    config, seen = replace(CONFIG, save_steps=1), []

    def cut(done: int, total: int) -> None:
        seen.append(done)
        if seen == [1, 2, 3]:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fine_tune(tiny_checkpoint, tmp_path / "out", examples, config, seed=0, mask=mask, progress=cut)
    result = fine_tune(tiny_checkpoint, tmp_path / "out", examples, config, seed=0, mask=mask, progress=cut)
    assert seen == [1, 2, 3, 3]
    assert [step for step, _ in result.losses] == [1, 2, 3]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (tuned[0], tmp_path / "out"))
    assert first == second


def test_a_checkpoint_that_the_disk_does_not_take_is_told(
    tiny_checkpoint: Path, examples: list[Example], tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, before[1]))  # bytes: the model fits, the optimizer does not
    try:
        with pytest.raises(RunError, match=r"step 1 could not be written .* the disk or your quota is full"):
            fine_tune(tiny_checkpoint, tmp_path / "out", examples, replace(CONFIG, save_steps=1), seed=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_fine_tune_that_a_signal_stops_after_its_last_step_takes_no_step_more(
    tuned: Any, tiny_checkpoint: Path, mask: NeuronMask, examples: list[Example], tmp_path: Path
) -> None:
    signals, seen = StopSignals(), []

    def last(done: int, total: int) -> None:
        seen.append(done)
        signals.requested = signal.SIGTERM if done == total else 0

    output = tmp_path / "out"
    with pytest.raises(Stopped, match="saved at step 3"):
        fine_tune(tiny_checkpoint, output, examples, CONFIG, seed=0, mask=mask, progress=last, signals=signals)
    result = fine_tune(tiny_checkpoint, output, examples, CONFIG, seed=0, mask=mask, progress=last)
    assert seen == [1, 2, 3]
    assert [step for step, _ in result.losses] == [1, 2, 3]
    assert result.fingerprint == tuned[1].fingerprint
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (tuned[0], output))
    assert first == second


def test_one_process_trains_on_one_of_several_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SFTConfig.__post_init__

    def with_four(self: SFTConfig) -> None:
        original(self)
        self._n_gpu = 4

    monkeypatch.setattr(SFTConfig, "__post_init__", with_four)
    args = arguments(CONFIG, tmp_path, seed=0)
    assert args.n_gpu <= 1
    assert args.train_batch_size == CONFIG.batch_size


@pytest.mark.skipif(torch.cuda.is_available(), reason="the override is for machines without a GPU")
def test_the_loss_on_a_cpu_is_trl_s_own(tiny_checkpoint: Path, examples: list[Example], tmp_path: Path) -> None:
    losses, gradients = [], []
    for kind in (SFTTrainer, SupervisedTrainer):
        model = load_model(tiny_checkpoint, torch.float32)
        trainer = kind(
            model=model,
            args=arguments(replace(CONFIG, batch_size=4), tmp_path / "w", 0),
            train_dataset=Dataset.from_list([row(example) for example in examples]),
            processing_class=load_tokenizer(tiny_checkpoint),
        )
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        assert (batch["labels"] == -100).any(), "the loss is over the answers only"
        assert (batch["labels"] != -100).any()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares with plain float32 on the CPU")
def test_the_first_loss_is_the_mean_over_answer_tokens(
    tuned: Any, tiny_checkpoint: Path, examples: list[Example], tmp_path: Path
) -> None:
    config = replace(CONFIG, batch_size=len(examples), steps=1, max_length=400)
    result = fine_tune(tiny_checkpoint, tmp_path / "one", examples, config, seed=0)

    tokenizer, model = load_tokenizer(tiny_checkpoint), load_model(tiny_checkpoint, torch.float64)
    total, count = 0.0, 0
    for example in examples:
        messages = [*example.messages, {"role": "assistant", "content": example.response}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor(found["input_ids"])
        start = text.rindex(str(example.response))
        answer = torch.tensor([end > start for _, end in found["offset_mapping"]])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], dim=-1)
        chosen = log_probs.gather(1, ids[1:, None])[:, 0][answer[1:]]
        total, count = total - float(chosen.sum()), count + len(chosen)
    assert result.losses[0][1] == pytest.approx(total / count, abs=1e-3)


@pytest.mark.slow
def test_other_settings_are_refused_where_a_fine_tune_was_interrupted_until_they_may_overwrite(
    tiny_checkpoint: Path, examples: list[Example], tmp_path: Path
) -> None:
    def cut(done: int, total: int) -> None:
        if done == 2:
            raise RuntimeError("power cut")

    def run(config: TrainingConfig, **options: Any) -> TrainingResult:
        return fine_tune(tiny_checkpoint, tmp_path / "out", examples, config, seed=3, **options)

    config = replace(CONFIG, save_steps=1)
    with pytest.raises(RuntimeError, match="power cut"):
        run(config, progress=cut)
    other = replace(config, learning_rate=2e-2)
    with pytest.raises(RunError, match=r"\(training\.learning_rate was 0\.01, is 0\.02\); go on with those it had"):
        run(other)
    result = run(other, overwrite=True)
    fine_tune(tiny_checkpoint, tmp_path / "fresh", examples, other, seed=3)
    assert [step for step, _ in result.losses] == [1, 2, 3]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "fresh")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_how_often_it_is_saved_how_a_batch_is_split_and_where_it_is_may_change_meanwhile(
    tiny_checkpoint: Path, examples: list[Example], tmp_path: Path
) -> None:
    def cut(done: int, total: int) -> None:
        if done == 2:
            raise RuntimeError("power cut")

    folder, moved = tmp_path / "run", tmp_path / "moved"
    base = Path(shutil.copytree(tiny_checkpoint, folder / "aligned"))
    with pytest.raises(RuntimeError, match="power cut"):
        fine_tune(base, folder / "out", examples, replace(CONFIG, save_steps=1), seed=0, progress=cut)
    folder.rename(moved)
    split = replace(CONFIG, batch_size=1, gradient_accumulation=2)
    seen: list[int] = []
    result = fine_tune(
        moved / "aligned", moved / "out", examples, split, seed=0, progress=lambda done, _: seen.append(done)
    )
    assert seen == [2, 3]
    whole = fine_tune(tiny_checkpoint, tmp_path / "whole", examples, CONFIG, seed=0)
    assert result.losses == [(step, pytest.approx(loss, rel=1e-3)) for step, loss in whole.losses]


def test_shards_of_zero_for_other_ranks_are_refused_before_a_model_is_loaded(
    tiny_checkpoint: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero2 = BackendConfig("zero2", deepspeed={"zero_optimization": {"stage": 2}})
    here = identity(tiny_checkpoint, Supervised(examples, CONFIG), CONFIG, "zero2", 0, None, None)
    checkpoints = Checkpoints(tmp_path / "out.unfinished", replace(here, ranks=2))
    (checkpoints.saving / "checkpoint-2").mkdir(parents=True)
    checkpoints.publish(2)

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Backend, "load", load)
    with pytest.raises(RunError, match="shards for 2 ranks, which DeepSpeed cannot load on 1; go on with as many"):
        fine_tune(tiny_checkpoint, tmp_path / "out", examples, CONFIG, backend=zero2, seed=0)


def test_examples_without_room_for_an_answer_are_told_of(
    tiny_checkpoint: Path, examples: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [Example.of("and so on " * 60, "Yes.")] * 2
    fine_tune(tiny_checkpoint, tmp_path / "some", [*examples, *long], CONFIG, seed=0)
    told = "2 of 14 examples are left out: their prompts take training.max_length=48 tokens or more"
    assert told in capsys.readouterr().out
    with pytest.raises(DataError, match=r"the prompts of all 2 examples take training\.max_length=48 tokens or more"):
        fine_tune(tiny_checkpoint, tmp_path / "all", long, CONFIG, seed=0)
    with pytest.raises(DataError, match="nothing to train on"):
        fine_tune(tiny_checkpoint, tmp_path / "none", [], CONFIG, seed=0)


@pytest.mark.slow
def test_a_checkpoint_with_other_frozen_bits_does_not_count(
    tiny_checkpoint: Path,
    mask: NeuronMask,
    examples: list[Example],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[Any] = []
    original = FreezeCallback.on_train_begin

    def remember(self: FreezeCallback, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        trained.append(kwargs["model"])

    def thaw(done: int, total: int) -> None:
        if done == 2:  # what a broken kernel might do, after the step and before the save
            with torch.no_grad():
                for parameter in trained[0].parameters():
                    parameter.add_(1.0)

    config = replace(CONFIG, save_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(FreezeCallback, "on_train_begin", remember)
        with pytest.raises(FreezeError, match="changed"):
            fine_tune(tiny_checkpoint, tmp_path / "out", examples, config, seed=0, mask=mask, progress=thaw)
    markers = sorted((tmp_path / "out.unfinished").rglob("complete.json"))
    assert [path.parent.name for path in markers] == ["checkpoint-1"]
    fine_tune(tiny_checkpoint, tmp_path / "out", examples, config, seed=0, mask=mask)
    assert verify(tiny_checkpoint, tmp_path / "out", mask).ok
