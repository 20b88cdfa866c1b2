"""One model's evaluation: an outcome for every prompt, honest progress, and no whole answers to harmful requests."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from neurofreeze.config.schema import EvaluationConfig
from neurofreeze.data import read
from neurofreeze.evaluation.generation import is_degenerate, openings
from neurofreeze.evaluation.likelihood import losses, refusal_margins
from neurofreeze.evaluation.measure import EvaluationData, Part, gathered, measure
from neurofreeze.evaluation.phrases import STRICT_OPENING

DATA = EvaluationData(
    harmful=read("bundled:harmful/evaluation", responses=False, limit=5),
    lookalikes=read("bundled:lookalikes/evaluation", responses=False, limit=4),
    domain=read("bundled:retail_bank/evaluation", limit=3),
    general=read("bundled:instructions/evaluation", limit=2),
)
CONFIG = EvaluationConfig(max_new_tokens=6, batch_size=2)


def test_there_is_one_outcome_for_every_prompt(tiny_model: Any, tiny_tokenizer: Any) -> None:
    found = measure(tiny_model, tiny_tokenizer, DATA, CONFIG, None)
    assert {name: len(values) for name, values in asdict(found).items()} == {
        "refused": 5,
        "over_refused": 4,
        "degenerate": 9,
        "margins": 5,
        "domain_losses": 3,
        "general_losses": 2,
        "opening_words": 9,
    }


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_steps_are_the_calls_of_progress(tiny_model: Any, tiny_tokenizer: Any, batch_size: int) -> None:
    told: list[int] = []
    config = replace(CONFIG, batch_size=batch_size, max_new_tokens=1)
    measure(tiny_model, tiny_tokenizer, DATA, config, 64, lambda: told.append(1))
    assert DATA.steps(config) == len(told)


def test_never_more_than_twelve_words_of_an_answer_are_kept(tiny_model: Any, tiny_tokenizer: Any) -> None:
    config = replace(CONFIG, max_new_tokens=60)
    whole = openings(tiny_model, tiny_tokenizer, DATA.harmful, max_new_tokens=60, batch_size=8)
    assert max(len(text.split()) for text in whole) > 12, "the answers must be longer for the cut to show"
    found = measure(tiny_model, tiny_tokenizer, DATA, config, None)
    assert max(len(words.split()) for words in found.opening_words) == 12
    assert found.opening_words[:5] == [" ".join(text.split()[:12]) for text in whole]


def test_outcomes_are_those_of_the_parts(tiny_model: Any, tiny_tokenizer: Any) -> None:
    found = measure(tiny_model, tiny_tokenizer, DATA, CONFIG, 64)
    texts = [
        openings(tiny_model, tiny_tokenizer, examples, max_new_tokens=6, batch_size=4)
        for examples in (DATA.harmful, DATA.lookalikes)
    ]
    assert found.refused == [STRICT_OPENING.is_refusal(text) for text in texts[0]]
    assert found.over_refused == [STRICT_OPENING.is_refusal(text) for text in texts[1]]
    assert found.degenerate == [is_degenerate(text) for text in texts[0] + texts[1]]
    assert found.margins == pytest.approx(refusal_margins(tiny_model, tiny_tokenizer, DATA.harmful, 3), abs=1e-5)
    assert found.domain_losses == pytest.approx(losses(tiny_model, tiny_tokenizer, DATA.domain, 3, 64), abs=1e-5)
    assert found.general_losses == pytest.approx(losses(tiny_model, tiny_tokenizer, DATA.general, 3, 64), abs=1e-5)


def test_refusals_are_counted_with_the_prompt_they_answer(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = {
        DATA.harmful[0].key: "I cannot do that.",
        DATA.harmful[2].key: "I can't.",
        DATA.lookalikes[0].key: "I'm unable to.",
    }
    monkeypatch.setattr(
        "neurofreeze.evaluation.measure.openings",
        lambda _, __, examples, **___: [refusals.get(example.key, "Sure.") for example in examples],
    )
    found = measure(tiny_model, tiny_tokenizer, DATA, CONFIG, None)
    assert found.refused == [True, False, True, False, False]
    assert found.over_refused == [True, False, False, False]


def test_measuring_twice_gives_the_same(tiny_model: Any, tiny_tokenizer: Any) -> None:
    first = measure(tiny_model.train(), tiny_tokenizer, DATA, CONFIG, None)
    assert first == measure(tiny_model, tiny_tokenizer, DATA, CONFIG, None)
    assert not tiny_model.training


def test_values_find_their_prompts_whatever_the_order_of_the_parts() -> None:
    data = EvaluationData(DATA.harmful[:3], DATA.lookalikes[:1], DATA.domain[:2], DATA.general[:1])
    parts = [
        (Part("lookalikes", [0]), [[True, False, "d"]]),
        (Part("harmful", [2, 0]), [[False, True, "c"], [True, True, "a"]]),
        (Part("domain", [1, 0]), [None, 2.0]),
        (Part("margins", [1, 2, 0]), [-2.0, -3.0, -1.0]),
        (Part("harmful", [1]), [[True, False, "b"]]),
        (Part("general", [0]), [1.0]),
    ]
    for order in (parts, parts[::-1]):
        found = gathered(data, order)
        assert (found.refused, found.over_refused) == ([True, True, False], [True])
        assert (found.degenerate, found.opening_words) == ([True, False, True, False], ["a", "b", "c", "d"])
        assert (found.margins, found.domain_losses, found.general_losses) == ([-1.0, -2.0, -3.0], [2.0], [1.0])
