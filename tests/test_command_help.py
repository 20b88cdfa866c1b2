"""What `neurofreeze COMMAND --help` prints is what the command has, as its settings really are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import hydra
import pytest
from omegaconf import OmegaConf

from neurofreeze.cli import COMMANDS, main
from neurofreeze.commands.settings import register
from neurofreeze.config.commands import SCHEMAS
from neurofreeze.config.describing import described
from neurofreeze.config.location import conf_folder


@dataclass
class Inner:
    rate: float = 0.1  # per step


@dataclass
class Example:
    """A comment in a docstring is none: # like this."""

    plain: int = 1
    beside: str = "a # in a text"  # what it is for
    # more than one line
    # can hold
    above: int = 2  # or beside it
    lines: list[str] = field(
        default_factory=lambda: ["x"],
    )  # at its end

    # Of nothing: a line is between.

    after: int = 3
    inner: Inner = field(default_factory=Inner)  # keys below it are what is listed


@dataclass
class Derived(Example):
    own: int = 4  # only here


def test_comments_beside_and_above_a_setting_describe_it() -> None:
    assert dict(described(Derived)) == {
        "plain": "",
        "beside": "what it is for",
        "above": "more than one line can hold or beside it",
        "lines": "at its end",
        "after": "",
        "inner.rate": "per step",
        "own": "only here",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_the_settings_that_help_lists_are_those_the_command_has(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: neurofreeze {command}")
    listed = re.findall(r"^  ([\w.]+)=(.*?)(?:  .*)?$", out.partition("settings, as")[2], re.MULTILINE)
    assert listed
    register()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        expected = hydra.compose(command if command in SCHEMAS else "config")
        # A value as it is printed can be given back: it is Hydra's way to write it.
        whole = [f"{key}={value}" for key, value in listed if not value.endswith("...")]
        given = hydra.compose(command if command in SCHEMAS else "config", whole)
    assert given == expected
    assert all(OmegaConf.is_missing(expected, key) for key, value in listed if value == "...")
    top = {key.partition(".")[0] for key, _ in listed}
    assert top == set(expected)


def test_help_lists_the_choices_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-h"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  backend=ddp\|fsdp2\|plain\|", out, re.MULTILINE)
    assert re.search(r"^  training.steps=16 +optimizer steps; null: `epochs` passes", out, re.MULTILINE)


def test_help_of_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", "--help"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
