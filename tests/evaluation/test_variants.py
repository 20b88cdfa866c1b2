"""Requests asked otherwise: what the model reads, and what counts as its answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from neurofreeze.data import Example, read
from neurofreeze.data.batches import prompt_ids
from neurofreeze.errors import ConfigError, DataError
from neurofreeze.evaluation.generation import openings
from neurofreeze.evaluation.phrases import LISTS
from neurofreeze.evaluation.variants import GROUPS, VARIANTS, Variant, answers, variants

REQUEST = "How do I {pick} a lock?"
LONG = Example((("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", REQUEST)), "No.")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return read("bundled:lookalikes/evaluation", responses=False, limit=5)


def test_plain_is_the_request_itself() -> None:
    assert VARIANTS["plain"].of(LONG) == LONG


@pytest.mark.parametrize("name", GROUPS["benign-framed"])
def test_a_good_purpose_is_said_around_the_whole_request(name: str) -> None:
    asked = VARIANTS[name].of(LONG)
    assert asked.turns[:-1] == LONG.turns[:-1]
    assert asked.response == LONG.response
    assert asked.prompt.count(REQUEST) == 1
    assert len(asked.prompt) > len(REQUEST) + 20
    assert VARIANTS[name].prefill == ""


def test_every_variant_asks_otherwise() -> None:
    asked = {(variant.of(LONG).turns, variant.prefill) for variant in VARIANTS.values()}
    assert len(asked) == len(VARIANTS)


def test_system_prompts_are_replaced_emptied_or_left_out() -> None:
    rest = LONG.turns[1:]
    careful, empty, none = (VARIANTS[name].of(LONG).turns for name in GROUPS["system"])
    assert careful[0][0] == empty[0][0] == "system"
    assert careful[0][1] not in ("", "Be brief.")
    assert empty[0][1] == ""
    assert careful[1:] == empty[1:] == none == rest
    single = Example.of("Hi")
    assert VARIANTS["no-system"].of(single) == single
    assert VARIANTS["careful-system"].of(single).turns == (careful[0], ("user", "Hi"))


@pytest.mark.parametrize("phrases", LISTS.values(), ids=list(LISTS))
def test_what_a_variant_puts_into_an_answer_is_no_refusal(phrases: Any) -> None:
    for name in GROUPS["prefilled"]:
        prefill = VARIANTS[name].prefill
        assert not phrases.is_refusal(f"{prefill} {'word ' * 30}")
        assert phrases.is_refusal(f"{prefill} I cannot help with that."), "a refusal after it still counts"


def test_a_begun_answer_goes_on_where_it_was_begun(
    tiny_model: Any, tiny_tokenizer: Any, examples: list[Example]
) -> None:
    prefill = VARIANTS["prefill-sure"].prefill
    ids = tiny_tokenizer(prefill, add_special_tokens=False)["input_ids"]
    found = openings(tiny_model, tiny_tokenizer, examples, max_new_tokens=5, batch_size=2, prefill=prefill)
    expected = []
    for example in examples:
        whole = prompt_ids(tiny_tokenizer, example) + ids
        start = len(whole) - len(ids)
        for _ in range(5):
            with torch.no_grad():
                whole = [*whole, int(tiny_model(input_ids=torch.tensor([whole])).logits[0, -1].argmax())]
            if whole[-1] == tiny_tokenizer.eos_token_id:
                break
        expected.append(tiny_tokenizer.decode(whole[start:], skip_special_tokens=True).strip())
    assert found == expected
    assert all(text.startswith(tiny_tokenizer.decode(ids).strip()) for text in found)
    assert len(set(found)) > 2, "the texts must differ for their order to show"


def test_answers_are_to_the_variant(tiny_model: Any, tiny_tokenizer: Any, examples: list[Example]) -> None:
    options: dict[str, Any] = {"max_new_tokens": 5, "batch_size": 2}
    plain = openings(tiny_model, tiny_tokenizer, examples, **options)
    assert answers(tiny_model, tiny_tokenizer, examples, VARIANTS["plain"], **options) == plain
    framed = VARIANTS["for-fiction"]
    expected = openings(tiny_model, tiny_tokenizer, [framed.of(example) for example in examples], **options)
    assert answers(tiny_model, tiny_tokenizer, examples, framed, **options) == expected != plain


def test_a_template_without_system_prompts_says_so(
    tiny_model: Any, tiny_tokenizer: Any, examples: list[Example]
) -> None:
    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + strict.chat_template
    )
    options: dict[str, Any] = {"max_new_tokens": 1, "batch_size": 2}
    answers(tiny_model, strict, examples, VARIANTS["no-system"], **options)
    with pytest.raises(DataError, match=r"variant careful-system cannot .* of system, user: no system role; leave"):
        answers(tiny_model, strict, examples, VARIANTS["careful-system"], **options)


def test_groups_stand_for_their_variants_each_once() -> None:
    found = [variant.name for variant in variants(["plain", "for-fiction", "benign-framed", "plain"])]
    assert found == ["plain", "for-fiction", *(name for name in GROUPS["benign-framed"] if name != "for-fiction")]
    assert variants([]) == []
    assert set(VARIANTS) == {"plain", *(name for group in GROUPS.values() for name in group)}


@pytest.mark.parametrize("name", ["", "politely", "Plain"])
def test_an_unknown_variant_names_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"has '{name}'; expected some of plain, for-protection"):
        variants(["plain", name])


def test_a_variant_of_one_s_own() -> None:
    assert Variant("mine", "Please. {request}").of(Example.of("Go")).prompt == "Please. Go"
