"""The blend against numpy, inside generate against loops written out, and the table of alpha."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import neurofreeze as nf
from neurofreeze.guard.reactions import Blend
from neurofreeze.guard.reactions.asking import Question
from neurofreeze.guard.reactions.base import Call
from neurofreeze.guard.reactions.blend import blend
from neurofreeze.guard.reactions.severity import CAUTIOUS, Scores, parse
from tests.guard.scripted import PROMPTS, Scripted, batch
from tests.guard.triggers.test_lif import last_logits, softmax


def reference(base: Any, expert: Any, alpha: float) -> Any:
    """The blended distribution, not normalised, 0 outside the union of both top 64."""
    p, q = softmax(base), softmax(expert)
    union = sorted(set(np.argsort(-p)[:64]) | set(np.argsort(-q)[:64]))
    found = np.zeros_like(p)
    found[union] = p[union] + alpha * (q[union] - p[union])
    return found


def test_the_blend_is_over_the_union_of_both_top_64() -> None:
    rng = np.random.default_rng(0)
    base, expert = rng.normal(0, 3, (2, 3, 500))
    alphas = [0.0, 0.5, 0.9]
    found = (
        blend(torch.tensor(base), torch.tensor(expert), torch.tensor(alphas, dtype=torch.float64)[:, None])
        .exp()
        .numpy()
    )
    for row, alpha in enumerate(alphas):
        expected = reference(base[row], expert[row], alpha)
        assert 64 < np.count_nonzero(expected) <= 128
        np.testing.assert_allclose(found[row], expected, atol=1e-12)


def always(gated: Any, tokenizer: Any, expert: Any, alpha: float, **options: Any) -> Any:
    """Tokens where row 0 and 2 are blended from the first step on, and row 1 never."""
    trigger = Scripted(frozenset({(0, 0), (2, 0)}))
    gate = nf.Gate(gated, tokenizer, trigger, Blend(alpha, lasting=None), expert=expert, steps=3)
    return gate.generate(**batch(tokenizer), **options)


def test_the_whole_expert_and_none_of_it_are_the_two_models(gated: Any, tiny_tokenizer: Any, expert: Any) -> None:
    inputs = batch(tiny_tokenizer)
    base, other = gated.generate(**inputs), expert.generate(**inputs, eos_token_id=gated.generation_config.eos_token_id)
    assert not torch.equal(base, other)
    assert torch.equal(always(gated, tiny_tokenizer, expert, 0.0), base)
    found = always(gated, tiny_tokenizer, expert, 1.0)
    assert torch.equal(found[::2, :], other[::2, :])
    assert torch.equal(found[1], base[1]), "another row's spike is not this row's"


def test_a_spike_blends_its_own_token(gated: Any, tiny_tokenizer: Any, expert: Any) -> None:
    inputs = batch(tiny_tokenizer, PROMPTS[:1])
    ids, scores = inputs["input_ids"][0].tolist(), []
    for step in range(12):
        base, other = last_logits(gated, ids), last_logits(expert, ids)
        scores.append(reference(base, other, 0.7) if step in (1, 4) else softmax(base))
        ids.append(int(np.argmax(scores[-1])))
    trigger = Scripted(frozenset({(0, 1), (0, 4)}))
    gate = nf.Gate(gated, tiny_tokenizer, trigger, Blend(0.7), expert=expert)
    found = gate.generate(**inputs, return_dict_in_generate=True, output_scores=True)
    assert found.sequences[0].tolist() == ids
    for step, expected in enumerate(scores):
        np.testing.assert_allclose(found.scores[step][0].softmax(-1), expected / expected.sum(), atol=1e-5)
    assert [(e.step, e.outcome, e.details) for e in gate.events if e.outcome == "blended"] == [
        (1, "blended", {"alpha": 0.7}),
        (4, "blended", {"alpha": 0.7}),
    ]


def test_a_firing_lasts_past_the_last_step_that_is_judged(gated: Any, tiny_tokenizer: Any, expert: Any) -> None:
    inputs = batch(tiny_tokenizer, PROMPTS[:1])

    def blended(lasting: int, steps: int | None) -> list[int]:
        trigger = Scripted(frozenset({(0, 1)}))
        gate = nf.Gate(gated, tiny_tokenizer, trigger, Blend(1.0, lasting=lasting), expert=expert, steps=steps)
        return gate.generate(**inputs)[0].tolist()

    assert blended(4, None) != blended(1, None)
    assert blended(4, 2) == blended(4, None)


def test_tokens_that_were_ruled_out_stay_so(gated: Any, tiny_tokenizer: Any, expert: Any) -> None:
    free = always(gated, tiny_tokenizer, expert, 1.0)
    start = batch(tiny_tokenizer)["input_ids"].shape[1]
    banned = int(free[0, start])
    found = always(gated, tiny_tokenizer, expert, 1.0, suppress_tokens=[banned])
    assert banned not in found[:, start:]


@pytest.mark.parametrize(
    ("scores", "risk", "alpha"),
    [
        ((0, 0, 0, 0), 0.0, 0.1),
        ((5, 8, 0, 0), 8.0, 0.9),  # one of A, E, T is 8 and S is 5: its value
        ((4, 8, 0, 0), 4.0, 0.1),  # S below 5: max(4, 4/2 + 8/4)
        ((5, 0, 9, 8), 9.0, 0.9),
        ((5, 7, 7, 7), 6.0, 0.5),  # 5/2 + 14/4
        ((6, 7, 7, 0), 6.5, 0.9),
        ((5, 0, 0, 0), 5.0, 0.5),  # not below 5
        ((6, 0, 0, 0), 6.0, 0.5),  # not above 6
        ((4, 4, 2, 6), 4.5, 0.1),  # 4/2 + (6 + 4)/4
        ((2, 10, 10, 10), 6.0, 0.5),
        ((10, 10, 10, 10), 10.0, 0.9),
    ],
)
def test_alpha_by_the_papers_rule(scores: tuple[float, ...], risk: float, alpha: float) -> None:
    found = Scores(*map(float, scores))
    assert (found.risk, found.alpha) == (risk, alpha)


GOOD = '{"severity": 9, "actionability": 8.5, "evasion": 0, "targeting": 1}'


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (GOOD, Scores(9.0, 8.5, 0.0, 1.0)),
        (f"Sure! ```json\n{GOOD}\n``` That is my rating.", Scores(9.0, 8.5, 0.0, 1.0)),
        (None, None),
        ("", None),
        ("severity 9", None),
        ('{"severity": 9}', None),
        (GOOD.replace("9", "11"), None),
        (GOOD.replace("9", "-1"), None),
        (GOOD.replace("9", '"9"'), None),
        (GOOD.replace("9", "true"), None),
        (GOOD.replace("9", "NaN"), None),
        (GOOD.replace("}", ', "alpha": 0}'), None),
        (GOOD[:-1], None),
    ],
)
def test_a_reply_is_four_numbers_or_unreadable(reply: str | None, expected: Scores | None) -> None:
    assert parse(reply) == expected


def test_the_model_is_asked_once_a_row_and_an_unreadable_reply_is_cautious(
    gated: Any, tiny_tokenizer: Any, expert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(self: Question, call: Call, tokens: int, *, conversation: str) -> str:
        asked.append(conversation)
        return GOOD if conversation == PROMPTS[0] else "I would not know."

    monkeypatch.setattr(Question, "ask", ask)
    trigger = Scripted(frozenset({(0, 1), (0, 2), (1, 2)}))
    gate = nf.Gate(gated, tiny_tokenizer, trigger, Blend(), expert=expert)
    gate.generate(**batch(tiny_tokenizer))
    blended = [event for event in gate.events if event.outcome == "blended"]
    assert [(event.row, event.step, event.details["alpha"]) for event in blended] == [
        (0, 1, 0.9),
        (0, 2, 0.9),
        (1, 2, CAUTIOUS),
    ]
    assert blended[0].details["scores"] == Scores(9.0, 8.5, 0.0, 1.0)._asdict()
    assert blended[2].details["scores"] is None
    assert asked == list(PROMPTS[:2])
