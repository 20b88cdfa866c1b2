"""`neurofreeze COMMAND --help`: what a command does, the choices it knows, and every setting with its value."""

from __future__ import annotations

import math

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from neurofreeze.cli import COMMANDS, FOLDER_COMMANDS
from neurofreeze.commands.settings import register
from neurofreeze.config.commands import SCHEMAS
from neurofreeze.config.describing import described
from neurofreeze.config.location import conf_folder
from neurofreeze.config.schema import Config
from neurofreeze.console import say

_COLUMN = 44  # where what settings are for begins
_LONGEST = 100  # characters of a value; --cfg job prints it whole


def show(command: str) -> int:
    """Print a command's help; returns the exit code."""
    register()
    name = command if command in SCHEMAS else "config"
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = hydra.compose(name, return_hydra_config=True)
        groups = [group for group in composed.hydra.runtime.choices if "/" not in group]
        loader = GlobalHydra.instance().config_loader()
        choices = {group: loader.get_group_options(group) for group in groups}
    folder = {"report": " [FOLDER]"}.get(command, " FOLDER" if command in FOLDER_COMMANDS else "")
    say(f"usage: neurofreeze {command}{folder} [key=value ...] [--debug]\n")
    say(f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}")
    if some := {group: options for group, options in choices.items() if len(options) > 1}:
        say("\nchoices, each a file of settings:")
        for group, options in some.items():
            say(f"  {group}={'|'.join(options)}")
    say("\nsettings, as they are unless you say otherwise:")
    for key, comment in described(SCHEMAS.get(command, Config)):
        say(f"  {f'{key}={_value(composed, key)}':{_COLUMN}}  {comment}".rstrip())
    if command == "benchmark":
        say("  and those of a run, for all arms: neurofreeze run --help")
    return 0


def _value(composed: DictConfig, key: str) -> str:
    if OmegaConf.is_missing(composed, key):
        return "..."
    value = OmegaConf.select(composed, key)
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, sort_keys=False).partition("\n")[0]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
