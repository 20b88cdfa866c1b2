"""A conversation in the terminal: what is shown, what is remembered, and the command around it."""

from __future__ import annotations

import copy
import io
import socket
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neurofreeze.cli import main
from neurofreeze.config.serve import ChatConfig
from neurofreeze.guard.chain import Chain
from neurofreeze.serving.jobs import Piece
from neurofreeze.serving.talk import Talk
from tests import tiny
from tests.serving.serving import PROMPTS, refusing, running


def plain(shown: io.StringIO) -> Console:
    """As the command's own, which reads no markup in what it shows."""
    return Console(file=shown, width=200, highlight=False, markup=False, emoji=False)


def test_answers_and_what_the_gate_did_are_shown(model: Any, tiny_tokenizer: Any) -> None:
    shown = io.StringIO()
    chain = Chain(model, tiny_tokenizer, [refusing(model, tiny_tokenizer, (0, 2))])
    talk = Talk(ChatConfig(model="tiny", system="be brief", max_tokens=8), chain, None, plain(shown))
    talk.ask("[/data] " + PROMPTS[0])
    first, second = shown.getvalue().splitlines()
    assert first == "[scripted] step 2: 1, threshold 0.5; refuse: blocked"
    assert second.strip() == "No."
    assert [turn.role for turn in talk.turns] == ["system", "user", "assistant"]
    assert talk.turns[-1].content.strip() == "No."
    talk.restart()
    assert [turn.role for turn in talk.turns] == ["system"]


def test_each_turn_sees_those_before_it(model: Any, tiny_tokenizer: Any) -> None:
    shown = io.StringIO()
    talk = Talk(ChatConfig(model="tiny", max_tokens=12), Chain(model, tiny_tokenizer), None, plain(shown))
    for prompt in PROMPTS[:2]:
        talk.ask(prompt)
    turns = [turn.model_dump() for turn in talk.turns]
    with running(model, tiny_tokenizer) as caller:
        asked = caller.ask(messages=turns[:3]).json()["choices"][0]["message"]["content"]
        alone = caller.ask(PROMPTS[1]).json()["choices"][0]["message"]["content"]
    assert turns[3]["content"] == asked
    assert asked != alone


def test_an_answer_ends_with_the_context_and_what_is_longer_is_not_asked(tiny_tokenizer: Any) -> None:
    model = tiny.model("gpt2", vocab_size=len(tiny_tokenizer), n_positions=64).eval()  # positions past it are an error
    shown = io.StringIO()
    talk = Talk(ChatConfig(model="tiny", max_tokens=200), Chain(model, tiny_tokenizer), None, plain(shown))
    talk.ask("hi")
    before = list(talk.turns)
    assert [turn.role for turn in before] == ["user", "assistant"]
    talk.ask("I lost my card " * 20)
    assert shown.getvalue().splitlines()[-1].endswith("tokens, the model reads 64; /new begins another")
    assert talk.turns == before


def test_a_conversation_that_the_template_refuses_is_told_so(model: Any, tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    shown = io.StringIO()
    Talk(ChatConfig(model="tiny", system="be brief"), Chain(model, tokenizer), None, plain(shown)).ask("hi")
    assert "has no place for these roles" in shown.getvalue()


def test_an_answer_cannot_command_the_terminal(model: Any, tiny_tokenizer: Any, monkeypatch: Any) -> None:
    shown = io.StringIO()
    talk = Talk(ChatConfig(model="tiny"), Chain(model, tiny_tokenizer), None, plain(shown))
    monkeypatch.setattr(talk._engine, "answer", lambda jobs: jobs[0].send(Piece("a\x1b[2Jb\nc")))
    talk.ask("hi")
    assert shown.getvalue() == "a\N{REPLACEMENT CHARACTER}[2Jb\nc"
    assert talk.turns[-1].content == "a\x1b[2Jb\nc"


def test_the_command_talks_until_the_input_ends(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPTS[0]}\n/new\n{PROMPTS[1]}\n"))
    assert main(["chat", f"model={tiny_checkpoint}", "max_tokens=4"]) == 0
    out = capsys.readouterr().out
    assert "guarded by nothing: the model answers as it is" in out
    assert out.count("> ") == 4


def test_an_answer_that_is_interrupted_has_not_been_asked_for(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    talk = Talk(ChatConfig(model="tiny", max_tokens=6), Chain(model, tiny_tokenizer), None, plain(shown))
    talk.ask(PROMPTS[0])
    before, answer = talk.turns, talk._engine.answer

    def interrupted(jobs: Any) -> None:
        jobs[0].send(Piece("so far"))
        raise KeyboardInterrupt

    monkeypatch.setattr(talk._engine, "answer", interrupted)
    talk.ask(PROMPTS[1])
    assert shown.getvalue().endswith("so far\ninterrupted; the conversation goes on from before it\n")
    assert talk.turns == before
    monkeypatch.setattr(talk._engine, "answer", answer)
    talk.ask("\udcff")
    assert shown.getvalue().endswith("this is no text in UTF-8, which is expected; say it again\n")
    assert talk.turns == before
    talk.ask(PROMPTS[1])
    assert [turn.role for turn in talk.turns] == ["user", "assistant"] * 2


def test_the_command_reads_what_is_no_text(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\nhello\n"), encoding="utf-8"))
    assert main(["chat", f"model={tiny_checkpoint}", "max_tokens=4"]) == 0
    assert "this is no text in UTF-8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "model=m", "host=0.0.0.0"], "host is '0.0.0.0'; expected 127.0.0.1"),
        (["serve", "model=m", "token_env=NOT_SET"], "token_env is 'no such name'"),
        (["serve", "model=m", "limits.streams=0"], "limits.streams is 0"),
        (["serve", "model=m", "limits.grace=inf"], "limits.grace is inf"),
        (["chat", "model=m", "temperature=3"], "temperature is 3.0"),
        (["chat", "model=m", f"seed={2**63}"], "seed is 9223372036854775808; expected a number from 0"),
        (["serve"], "model"),
    ],
)
def test_wrong_settings_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "model=no-such-model", f"port={port}"]) == 2
    assert f"127.0.0.1:{port} cannot be listened on: Address already in use" in capsys.readouterr().err
