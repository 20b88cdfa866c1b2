"""Answers token by token: the pieces are the whole, and stop texts are found wherever tokens cut them."""

from __future__ import annotations

from typing import Any

import pytest

from neurofreeze.serving.text import Answer

SAID = "Your card is blocked. \N{SNOWMAN} café, \N{GRINNING FACE}\N{GRINNING FACE} and  two spaces\n\nThe end."
NONE: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def byte_tokenizer() -> Any:
    """Every byte is a token, and a few pairs of letters are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([SAID], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def ids(tokenizer: Any, text: str = SAID) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def pieces(answer: Answer, tokens: list[int]) -> list[str]:
    found = []
    for token in tokens:
        assert answer.ending is None
        found.append(answer.add(token))
        if answer.ending:
            break
    return found


def test_the_pieces_are_the_whole(byte_tokenizer: Any) -> None:
    tokens = ids(byte_tokenizer)
    assert byte_tokenizer.decode(tokens) == SAID  # characters of several tokens among them
    assert len(tokens) > len(SAID) / 2
    answer = Answer(byte_tokenizer, NONE, len(tokens))
    found = pieces(answer, tokens)
    assert "".join(found) == SAID
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)
    assert (answer.ending, answer.tokens) == ("length", len(tokens))


def test_an_answer_that_ends_inside_a_character_shows_that(byte_tokenizer: Any) -> None:
    tokens = ids(byte_tokenizer, "a \N{HEAVY BLACK HEART}")
    answer = Answer(byte_tokenizer, NONE, len(tokens) - 1)
    assert "".join(pieces(answer, tokens)) == "a \N{REPLACEMENT CHARACTER}"


def test_the_token_that_ends_is_counted_and_is_no_text(byte_tokenizer: Any) -> None:
    end = byte_tokenizer.eos_token_id
    answer = Answer(byte_tokenizer, frozenset({end}), 100)
    assert "".join(pieces(answer, [*ids(byte_tokenizer), end, *ids(byte_tokenizer)])) == SAID
    assert (answer.ending, answer.tokens) == ("stop", len(ids(byte_tokenizer)) + 1)


@pytest.mark.parametrize("stop", ["blocked. ", "d", "\N{GRINNING FACE}", "é", "\n\nThe", "  ", "end.", "Y"])
def test_a_stop_text_ends_the_answer_before_it(byte_tokenizer: Any, stop: str) -> None:
    answer = Answer(byte_tokenizer, NONE, 1000, ["never said", stop])
    assert "".join(pieces(answer, ids(byte_tokenizer))) == SAID.partition(stop)[0]
    assert answer.ending == "stop"


def test_the_first_of_several_stop_texts_counts(byte_tokenizer: Any) -> None:
    answer = Answer(byte_tokenizer, NONE, 1000, ["is blocked", "card is"])
    assert "".join(pieces(answer, ids(byte_tokenizer))) == "Your "


def test_what_only_began_like_a_stop_text_is_given(byte_tokenizer: Any) -> None:
    tokens = ids(byte_tokenizer)
    answer = Answer(byte_tokenizer, NONE, len(tokens), ["The end!", "spaces\n\nthe"])
    assert "".join(pieces(answer, tokens)) == SAID
    assert answer.ending == "length"
