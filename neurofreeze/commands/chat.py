"""neurofreeze chat: a conversation with a guarded model in the terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from neurofreeze.commands.settings import compose
from neurofreeze.config.guard import with_filters
from neurofreeze.config.serve import ChatConfig
from neurofreeze.console import console, say, stage


def main(overrides: Sequence[str]) -> int:
    """Talk until an empty line, /quit, Ctrl-C or the end of the input; /new begins another conversation."""
    return compose("chat", with_filters(overrides), _chat, "chat", needs_folder=False)


def _chat(config: ChatConfig, _: Path, __: str) -> int:
    from neurofreeze.serving.loading import guarded_by, load_guarded
    from neurofreeze.serving.talk import Talk

    with stage("loading"):
        chain, monitor = load_guarded(config)
        talk = Talk(config, chain, monitor, console)
    say(f"guarded by {guarded_by(chain, monitor)}")
    say("/new begins another conversation, /quit or an empty line ends; Ctrl-C ends an answer")
    _prepare_input()
    while True:
        try:
            asked = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            break
        if asked in ("", "/quit"):
            break
        if asked == "/new":
            talk.restart()
            continue
        talk.ask(asked)
    return 0


def _prepare_input() -> None:
    with suppress(ImportError):  # not everywhere
        import readline  # noqa: F401  # by being imported it lets a line be edited, and those before it come back
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is for `Talk` to refuse, not for the decoder
