"""Preference training: frozen bits stay under weight decay, the loss is DPO's, and it goes on where it was stopped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from neurofreeze.config.schema import TrainingConfig
from neurofreeze.data.preferences import Preference, read_preferences
from neurofreeze.errors import DataError, FreezeError
from neurofreeze.evaluation.ablation import ablated
from neurofreeze.freezer import Freezer
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.training.dpo import prefer
from neurofreeze.training.fitting import TrainingResult
from neurofreeze.verification import verify

CONFIG = TrainingConfig(
    steps=3,
    batch_size=2,
    learning_rate=1e-2,
    scheduler="cosine",
    warmup_steps=0,
    weight_decay=0.5,
    max_length=96,
    bf16="false",
)
BETA = 0.1


@pytest.fixture(scope="module")
def pairs() -> list[Preference]:
    return read_preferences("bundled:preferences/safety", "safety")[:8]


@pytest.fixture(scope="module")
def mask(tiny_checkpoint: Path) -> NeuronMask:
    return NeuronMask.random(NeuronMap.of(load_config(tiny_checkpoint)), 0.3, seed=1)


def train(base: Path, output: Path, pairs: list[Preference], config: TrainingConfig = CONFIG, **options: Any) -> Any:
    return prefer(base, output, pairs, config, beta=BETA, seed=0, **options)


@pytest.fixture(scope="module")
def trained(
    tiny_checkpoint: Path, mask: NeuronMask, pairs: list[Preference], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainingResult]:
    output = tmp_path_factory.mktemp("dpo") / "frozen"
    return output, train(tiny_checkpoint, output, pairs, mask=mask)


def test_frozen_bits_stay_under_weight_decay_and_others_move(
    trained: Any, tiny_checkpoint: Path, mask: NeuronMask
) -> None:
    found = verify(tiny_checkpoint, trained[0], mask)
    assert found.changed == 0
    assert found.frozen > 5000
    assert found.trainable_changed > 0.9 * found.trainable


def test_frozen_bits_that_move_are_an_error(
    tiny_checkpoint: Path, mask: NeuronMask, pairs: list[Preference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What weight decay does to "frozen" weights where only their gradients are zero.
    monkeypatch.setattr(Freezer, "_after_step", lambda *_: None)
    with pytest.raises(FreezeError, match="changed"):
        train(tiny_checkpoint, tmp_path / "out", pairs, replace(CONFIG, steps=1), mask=mask)
    assert not (tmp_path / "out").exists()


def test_the_output_is_an_ordinary_checkpoint_in_the_base_s_precision(trained: Any, tiny_checkpoint: Path) -> None:
    assert load_model(trained[0]).dtype == load_model(tiny_checkpoint).dtype == torch.bfloat16
    assert load_tokenizer(trained[0]).chat_template == load_tokenizer(tiny_checkpoint).chat_template
    assert not list(trained[0].parent.glob("*.unfinished"))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="compares with plain float64 on the CPU")
def test_the_loss_is_dpo_s(tiny_checkpoint: Path, pairs: list[Preference], tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = []
    config = replace(CONFIG, steps=1, batch_size=len(pairs), max_length=400, scheduler="constant")
    train(tiny_checkpoint, tmp_path / "1", pairs, config)
    train(tiny_checkpoint, tmp_path / "2", pairs, replace(config, steps=2), log=logged.append)
    model, reference = load_model(tmp_path / "1", torch.float64), load_model(tiny_checkpoint, torch.float64)
    tokenizer = load_tokenizer(tiny_checkpoint)
    losses = []
    for pair in pairs:
        ratios = [
            _log_prob(model, tokenizer, pair, text) - _log_prob(reference, tokenizer, pair, text)
            for text in (str(pair.response), pair.rejected)
        ]
        losses.append(-F.logsigmoid(BETA * (ratios[0] - ratios[1])))
    assert logged[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "the model begins as its own reference"
    # The model of step 1 was saved in bfloat16.
    assert logged[1]["loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=0.02)
    assert abs(logged[1]["loss"] - logged[0]["loss"]) > 0.05


def _log_prob(model: Any, tokenizer: Any, pair: Preference, answer: str) -> torch.Tensor:
    prompt = tokenizer.apply_chat_template(pair.messages, add_generation_prompt=True, return_dict=False)
    messages = [*pair.messages, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    start = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    ids = torch.tensor(whole)
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], dim=-1)
    return log_probs.gather(1, ids[1:, None])[start - 1 :].sum()


def test_suppressing_changes_training_but_not_the_reference_nor_what_is_saved(
    trained: Any, tiny_checkpoint: Path, mask: NeuronMask, pairs: list[Preference], tmp_path: Path
) -> None:
    logged: list[dict[str, Any]] = []
    result = train(tiny_checkpoint, tmp_path / "out", pairs, mask=mask, suppress=True, log=logged.append)
    # The model without some neurons is not its reference, which is whole.
    assert logged[0]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    assert result.losses != trained[1].losses
    assert verify(tiny_checkpoint, tmp_path / "out", mask).changed == 0
    model, ids = load_model(tmp_path / "out"), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        whole = model(ids).logits
        with ablated(model.train(), mask, training_only=True):
            without, again = model(ids).logits, model.eval()(ids).logits
    assert torch.equal(whole, again)
    assert not torch.equal(whole, without)


@pytest.mark.slow
def test_it_goes_on_from_its_last_checkpoint_to_the_same_bits(
    trained: Any, tiny_checkpoint: Path, mask: NeuronMask, pairs: list[Preference], tmp_path: Path
) -> None:
    config, seen = replace(CONFIG, save_steps=1), []

    def cut(done: int, _: int) -> None:
        seen.append(done)
        if seen == [1, 2]:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny_checkpoint, tmp_path / "out", pairs, config, mask=mask, progress=cut)
    assert not (tmp_path / "out").exists()
    train(tiny_checkpoint, tmp_path / "out", pairs, config, mask=mask, progress=cut)
    assert seen == [1, 2, 2, 3]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (trained[0], tmp_path / "out"))
    assert first == second


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(
    tiny_checkpoint: Path, pairs: list[Preference], tmp_path: Path
) -> None:
    long = Preference((("user", "word " * 200),), "no", "yes", "safety")
    with pytest.raises(DataError, match=r"prompts of 1 of 9 preference pairs take training\.max_length=96 tokens"):
        train(tiny_checkpoint, tmp_path / "out", [*pairs, long])
