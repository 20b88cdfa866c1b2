"""NGSD's neuron against a transcription in numpy, step by step, from whole passes without a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import neurofreeze as nf
from neurofreeze.guard.expert import ExpertRun
from neurofreeze.guard.reactions import Blend, Flag, Refuse
from neurofreeze.guard.triggers import LifTrigger
from neurofreeze.guard.triggers.base import Step
from neurofreeze.guard.triggers.lif import LifWatch
from tests import tiny
from tests.guard.scripted import PROMPTS, batch


def softmax(logits: Any) -> Any:
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def last_logits(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy()


@pytest.mark.parametrize("threshold", [1.0, 0.2])
def test_the_equations(gated: Any, tiny_tokenizer: Any, expert: Any, threshold: float) -> None:
    inputs = batch(tiny_tokenizer)
    gate = nf.Gate(gated, tiny_tokenizer, LifTrigger(), Blend(alpha=0.0), steps=None, expert=expert)
    assert gate.threshold == 1.0
    gate.threshold = threshold
    sequences = gate.generate(**inputs)
    found = {(event.row, event.step): event.value for event in gate.events}
    assert {event.outcome for event in gate.events} == {"blended"}
    length = inputs["input_ids"].shape[1]
    spikes = {}
    for row, sequence in enumerate(sequences.tolist()):
        start = length - int(inputs["attention_mask"][row].sum())
        potential = 0.0
        for step in range(12):
            ids = sequence[start : length + step]
            base, other = (softmax(last_logits(model, ids)) for model in (gated, expert))
            potential = (1 - 1 / 8) * potential + 0.5 * np.abs(base - other).sum()
            if potential >= threshold:
                spikes[row, step] = potential
                potential *= 0.6
    assert spikes.keys() == found.keys()
    assert len(spikes) == {1.0: 3, 0.2: 33}[threshold]
    for key, value in spikes.items():
        assert found[key] == pytest.approx(value, abs=1e-5), key  # distributions are float32, as generate's are


def test_constants_are_settings() -> None:
    watch = LifWatch(LifTrigger(tau=2.0, keep=0.25), 2)
    logits = torch.tensor([[9.0, 0.0], [0.0, 0.0]])

    def values(rows: list[int]) -> list[float]:
        return watch.values(Step(0, logits, logits, rows, lambda rows: -logits[rows])).tolist()

    distance = float((logits[0].softmax(-1) - (-logits[0]).softmax(-1)).abs().sum()) / 2
    assert values([0, 1]) == pytest.approx([distance, 0.0])
    watch.fired([0])
    assert values([0]) == pytest.approx([0.5 * 0.25 * distance + distance])


def test_the_expert_reads_each_token_once_and_only_of_rows_in_question(
    gated: Any, tiny_tokenizer: Any, expert: Any
) -> None:
    inputs = batch(tiny_tokenizer)
    shapes: list[tuple[int, ...]] = []
    handle = expert.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    length = inputs["input_ids"].shape[1]
    gate = nf.Gate(gated, tiny_tokenizer, LifTrigger(), Flag(), steps=5, expert=expert)
    gate.threshold = 0.0  # each row is flagged, and so settled, at once
    gate.generate(**inputs)
    assert shapes == [(3, length)]
    shapes.clear()
    gate.threshold = 1e9
    gate.generate(**inputs)
    assert shapes == [(3, length), *[(3, 1)] * 4], "5 steps are judged of 12 that are generated"
    shapes.clear()
    blending = nf.Gate(gated, tiny_tokenizer, LifTrigger(), Blend(alpha=0.3), steps=5, expert=expert)
    blending.threshold = 0.0
    blending.generate(**inputs)
    handle.remove()
    assert shapes == [(3, length), *[(3, 1)] * 4], "trigger and reaction share a pass"


def test_a_row_that_is_settled_leaves_the_experts_cache(gated: Any, tiny_tokenizer: Any, expert: Any) -> None:
    inputs = batch(tiny_tokenizer)
    whole = gated.generate(**inputs)
    length = inputs["input_ids"].shape[1]
    run = ExpertRun(expert, inputs["attention_mask"], 400)
    for end, rows in ((length, [0, 1, 2]), (length + 1, [0, 2]), (length + 3, [2]), (length + 4, [1, 2])):
        found = run.logits(whole[:, :end], rows)
        for logits, row in zip(found, rows, strict=True):
            start = length - int(inputs["attention_mask"][row].sum())
            expected = last_logits(expert, whole[row, start:end].tolist())
            np.testing.assert_allclose(logits[: len(expected)].numpy(), expected, atol=1e-5)
    assert run.passes == 4


def test_vocabularies_that_are_padded_otherwise_are_compared_where_both_have_tokens(
    gated: Any, tiny_tokenizer: Any
) -> None:
    larger = tiny.model("llama", seed=7, vocab_size=len(tiny_tokenizer) + 13, max_position_embeddings=512)
    gate = nf.Gate(gated, tiny_tokenizer, LifTrigger(), Refuse(), expert=larger)
    gate.generate(**batch(tiny_tokenizer, PROMPTS[:1]))
    assert gate.events
    small = tiny.model("llama", vocab_size=len(tiny_tokenizer) - 1)
    with pytest.raises(nf.GuardError, match="same token ids"):
        nf.Gate(gated, tiny_tokenizer, LifTrigger(), Refuse(), expert=small)
