"""Examples: what makes two prompts the same, and digests that do not depend on order."""

from __future__ import annotations

from neurofreeze.data import Example, digest


def test_key_ignores_case_punctuation_and_spacing() -> None:
    assert Example.of("How do I open a lock?").key == Example.of("how do i  OPEN a lock!").key
    assert Example.of("How do I open a lock?").key != Example.of("How do I open a clock?").key


def test_key_keeps_letters_of_other_scripts() -> None:
    assert Example.of("Как открыть замок?").key != Example.of("Как открыть счёт?").key


def test_prompt_is_the_last_turn_and_messages_are_all() -> None:
    example = Example((("system", "Be brief."), ("user", "Hi")), "Hello")
    assert example.prompt == "Hi"
    assert example.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def test_digest_ignores_order_and_sees_prompts_and_answers() -> None:
    a, b = Example.of("one", "1"), Example.of("two", "2")
    assert digest([a, b]) == digest([b, a])
    assert digest([a, b]) != digest([a, Example.of("two", "3")])
    assert digest([a, b]) != digest([a, Example.of("three", "2")])
    assert digest([a]) != digest([a, a])


def test_digest_sees_what_came_before_the_prompt() -> None:
    kind, rude = (Example((("system", text), ("user", "one")), "1") for text in ("Be kind.", "Be rude."))
    assert len({digest([found]) for found in (kind, rude, Example.of("one", "1"))}) == 3
    assert kind.key == rude.key
