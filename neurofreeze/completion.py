"""Completion of commands and settings in a shell: `eval "$(neurofreeze --shell-completion install=bash)"`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from neurofreeze.cli import COMMANDS
from neurofreeze.commands.settings import compose
from neurofreeze.config.commands import SCHEMAS


def main(arguments: Sequence[str]) -> int:
    """Print a shell's set-up (install=bash, uninstall=bash), or what may come next on its line (query=bash)."""
    config_name = "config"
    if any(argument.startswith("query=") for argument in arguments):
        # The shell's line begins with our name and the command, of which Hydra knows nothing.
        program, _, rest = os.environ["COMP_LINE"].partition(" ")
        command, space, settings = rest.lstrip().partition(" ")
        if not space:
            print(" ".join(name for name in COMMANDS if name.startswith(command)))
            return 0
        os.environ["COMP_LINE"] = f"{program} {settings}"
        config_name = command if command in SCHEMAS else config_name
    options = [argument for argument in arguments if argument not in COMMANDS]
    return compose("", options, lambda *_: 0, config_name)
