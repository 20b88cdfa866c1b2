"""Examples: what makes two prompts the same, and digests by which a change of the data is seen."""

from __future__ import annotations

import pytest

from neurofreeze.data import Example, digest


def test_key_ignores_case_punctuation_and_spacing() -> None:
    assert Example.of("How do I open a lock?").key == Example.of("how do i  OPEN a lock!").key
    assert Example.of("How do I open a lock?").key != Example.of("How do I open a clock?").key


@pytest.mark.parametrize("twin", ["Öffne das Cafe\u0301!", "ÖFFNE das \uff23afé", "Öff\u00adne das\u200b Café"])
def test_key_ignores_how_unicode_writes_a_letter(twin: str) -> None:
    assert Example.of(twin).key == Example.of("öffne das café").key


def test_key_keeps_letters_of_other_scripts() -> None:
    assert Example.of("Как открыть замок?").key != Example.of("Как открыть счёт?").key


def test_prompt_is_the_last_turn_and_messages_are_all() -> None:
    example = Example((("system", "Be brief."), ("user", "Hi")), "Hello")
    assert example.prompt == "Hi"
    assert example.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def test_digest_sees_prompts_and_answers_to_the_letter_and_their_order() -> None:
    a, b = Example.of("one", "1"), Example.of("two", "2")
    others = [[b, a], [a, Example.of("two", "3")], [a, Example.of("Two?", "2")], [a], [a, b, b]]
    assert digest([a, b]) == digest([Example.of("one", "1"), b])
    assert len({digest(found) for found in ([a, b], *others)}) == 6


def test_digest_sees_what_came_before_the_prompt() -> None:
    kind, rude = (Example((("system", text), ("user", "one")), "1") for text in ("Be kind.", "Be rude."))
    assert len({digest([found]) for found in (kind, rude, Example.of("one", "1"))}) == 3
    assert kind.key == rude.key
