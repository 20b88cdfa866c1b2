"""Replay and anchor: their terms against numpy, in one forward pass with the micro-batch, on any number of ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from neurofreeze.config.objectives import AnchorConfig, ReplayConfig
from neurofreeze.config.schema import TrainingConfig
from neurofreeze.data import Example, read
from neurofreeze.data.batches import answer_ids
from neurofreeze.errors import ConfigError, DataError, RunError
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.training.fitting import identity
from neurofreeze.training.objectives import Anchor, Joint, Objective, Replay, Row, joint
from neurofreeze.training.objectives.base import Order
from neurofreeze.training.sft import Supervised, TrainingResult, fine_tune

CONFIG = TrainingConfig(steps=2, batch_size=2, learning_rate=1e-2, warmup_steps=0, max_length=96, bf16="false")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return read("bundled:retail_bank/train", limit=6)


@pytest.fixture(scope="module")
def known() -> list[Example]:
    return read("bundled:retail_bank/evaluation", limit=3)


def log_probs(model: Any, row: Row) -> npt.NDArray[np.float64]:
    """Of every word after each token before the answer's tokens: [answer tokens, vocabulary]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, row.start - 1 : -1].double().numpy()
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_each_example_comes_once_an_epoch_whatever_came_before() -> None:
    order = Order(examples=5, rows=2, seed=3)
    found = [index for micro_batch in range(5) for index in order.of(micro_batch)]
    assert sorted(found[:5]) == sorted(found[5:]) == [0, 1, 2, 3, 4]
    assert found[:5] != found[5:]
    assert Order(5, 2, seed=3).of(3) == found[6:8]
    assert [i for m in range(5) for i in Order(5, 2, seed=4).of(m)] != found


def test_replay_is_the_mean_loss_of_the_answer_s_tokens(tiny_checkpoint: Path, known: list[Example]) -> None:
    terms = Replay(ReplayConfig(weight=0.3, rows=3), known).prepare(tiny_checkpoint, 96, seed=0)
    model = load_model(tiny_checkpoint, torch.float32)
    for row in terms.rows(0):
        ids, start = answer_ids(load_tokenizer(tiny_checkpoint), known[row.example])
        assert (row.ids, row.start) == (ids[:96], start)
        expected = -log_probs(model, row)[np.arange(len(row.ids) - row.start), row.ids[row.start :]].mean()
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, row.start - 1 : -1]
        assert terms.loss(row, logits).item() == pytest.approx(expected, rel=1e-5)


def test_an_anchor_is_zero_at_the_start_and_grows_away_from_it(tiny_checkpoint: Path, known: list[Example]) -> None:
    terms = Anchor(AnchorConfig(weight=1.0, rows=3, tokens=3), known).prepare(tiny_checkpoint, 96, seed=0)
    start, other = (load_model(tiny_checkpoint, torch.float32) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    for row in terms.rows(0):
        assert 1 <= len(row.ids) - row.start <= 3
        p, q = log_probs(start, row), log_probs(other, row)
        assert row.ids[row.start :] == p.argmax(-1).tolist()  # the start's own greedy opening
        found = [
            terms.loss(row, model(input_ids=torch.tensor([row.ids])).logits[0, row.start - 1 : -1]).item()
            for model in (start, other)
        ]
        expected = (np.exp(p) * (p - q)).sum(-1).mean()
        assert found[0] == pytest.approx(0, abs=1e-3)
        assert found[1] == pytest.approx(expected, rel=5e-3)  # the reference is held in half precision
        assert expected > 0.05


def test_rows_below_a_batch_change_nothing_above_and_have_no_labels(
    tiny_checkpoint: Path, known: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_checkpoint, torch.float32)
    terms = Replay(ReplayConfig(weight=0.3, rows=3), known).prepare(tiny_checkpoint, 96, seed=0)
    batch = {
        "input_ids": torch.arange(22).view(2, 11) + 5,
        "attention_mask": torch.ones(2, 11, dtype=torch.int64),
        "labels": torch.tensor([[-100] * 6 + [7] * 5, [-100] * 4 + [9] * 7]),
    }
    whole = Joint([terms])
    joined, placed = whole.join(dict(batch), 4)
    assert [each.row for each in placed] == terms.rows(4)
    alone, together = model(**batch), model(**joined)
    torch.testing.assert_close(together.logits[:2, :11], alone.logits)
    assert together.loss.item() == pytest.approx(alone.loss.item(), rel=1e-5)
    mean = whole.losses(together.logits, placed)["replay_loss"].item()
    assert mean == pytest.approx(np.mean([alone_loss(model, row) for row in terms.rows(4)]), rel=1e-5)

    parts = []  # of two ranks that share three rows, averaged as engines average
    for rank in range(2):
        monkeypatch.setattr(joint, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(joint, "world_size", lambda: 2)
        joined, placed = whole.join(dict(batch), 4)
        assert len(placed) == (2, 1)[rank]
        parts.append(whole.losses(model(**joined).logits, placed)["replay_loss"].item())
    assert sum(parts) / 2 == pytest.approx(mean, rel=1e-5)


def alone_loss(model: Any, row: Row) -> float:
    return float(-log_probs(model, row)[np.arange(len(row.ids) - row.start), row.ids[row.start :]].mean())


def test_packed_batches_are_refused(tiny_checkpoint: Path, known: list[Example]) -> None:
    terms = Replay(ReplayConfig(weight=0.3), known).prepare(tiny_checkpoint, 96, seed=0)
    with pytest.raises(ConfigError, match=r"need padded batches .* hold input_ids, position_ids"):
        Joint([terms]).join({"input_ids": torch.ones(1, 4), "position_ids": torch.ones(1, 4)}, 0)


def test_an_answer_beyond_the_length_is_refused(tiny_checkpoint: Path, known: list[Example]) -> None:
    with pytest.raises(DataError, match=r"nothing of its answer is left within training.max_length=8"):
        Replay(ReplayConfig(weight=0.3), known).prepare(tiny_checkpoint, 8, seed=0)
    with pytest.raises(DataError, match=r"more than training.max_length=8"):
        Anchor(AnchorConfig(weight=0.3), known).prepare(tiny_checkpoint, 8, seed=0)


def tuned(base: Path, output: Path, examples: list[Example], objectives: list[Objective], **settings: Any) -> Any:
    logged: list[dict[str, Any]] = []
    config = replace(CONFIG, **settings)
    result = fine_tune(base, output, examples, config, seed=0, objectives=objectives, log=logged.append)
    return result, logged


@pytest.mark.slow
def test_both_are_added_to_the_training_loss_with_their_weights(
    tiny_checkpoint: Path, examples: list[Example], known: list[Example], tmp_path: Path
) -> None:
    both = [Replay(ReplayConfig(0.3, 3), known), Anchor(AnchorConfig(0.5, 1, 3), known)]
    plain: TrainingResult = tuned(tiny_checkpoint, tmp_path / "plain", examples, [])[0]
    result, logged = tuned(tiny_checkpoint, tmp_path / "both", examples, both)
    model = load_model(tiny_checkpoint, torch.float32)
    rows = both[0].prepare(tiny_checkpoint, 96, seed=0).rows(0)
    assert logged[0]["replay_loss"] == pytest.approx(np.mean([alone_loss(model, row) for row in rows]), rel=1e-4)
    assert logged[0]["anchor_kl"] == pytest.approx(0, abs=1e-3)
    assert logged[1]["anchor_kl"] > 1e-3
    expected = plain.losses[0][1] + 0.3 * logged[0]["replay_loss"] + 0.5 * logged[0]["anchor_kl"]
    assert result.losses[0][1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_micro_batches_of_one_step_have_rows_of_their_own(
    tiny_checkpoint: Path, examples: list[Example], known: list[Example], tmp_path: Path
) -> None:
    # Four examples with two rows are, in two micro-batches, two examples with one row each.
    whole, one = (Replay(ReplayConfig(0.3, rows), known) for rows in (2, 1))
    first, _ = tuned(tiny_checkpoint, tmp_path / "whole", examples, [whole], batch_size=4)
    second, _ = tuned(tiny_checkpoint, tmp_path / "parts", examples, [one], batch_size=2, gradient_accumulation=2)
    assert [loss for _, loss in second.losses] == pytest.approx([loss for _, loss in first.losses], rel=1e-4)


def test_with_objectives_a_step_may_not_be_split_otherwise_after_an_interruption(
    tiny_checkpoint: Path, examples: list[Example], known: list[Example]
) -> None:
    def digest(objectives: list[Objective], **settings: Any) -> str:
        config = replace(CONFIG, **settings)
        task = Supervised(examples, config, objectives)
        return identity(tiny_checkpoint, task, config, "plain", 0, None, None).digest

    split = {"batch_size": 1, "gradient_accumulation": 2}
    assert digest([], **split) == digest([])
    assert digest([Replay(ReplayConfig(0.3), known)], **split) != digest([Replay(ReplayConfig(0.3), known)])


@pytest.mark.slow
def test_an_interrupted_fine_tune_goes_on_with_the_same_objectives_only(
    tiny_checkpoint: Path, examples: list[Example], known: list[Example], tmp_path: Path
) -> None:
    def stop(done: int, _: int) -> None:
        if done == 2:
            raise RuntimeError("stop")

    config = replace(CONFIG, steps=3, save_steps=1)
    objectives: list[Objective] = [Replay(ReplayConfig(0.3, 2), known), Anchor(AnchorConfig(0.5, 1, 3), known)]
    run = {"base": tiny_checkpoint, "examples": examples, "config": config, "seed": 0}
    whole = fine_tune(output=tmp_path / "whole", objectives=objectives, **run)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="stop"):
        fine_tune(output=tmp_path / "cut", objectives=objectives, progress=stop, **run)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="objectives"):
        fine_tune(output=tmp_path / "cut", objectives=objectives[:1], **run)  # type: ignore[arg-type]
    resumed = fine_tune(output=tmp_path / "cut", objectives=objectives, **run)  # type: ignore[arg-type]
    assert resumed.losses == whole.losses
