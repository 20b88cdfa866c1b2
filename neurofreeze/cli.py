"""`neurofreeze COMMAND key=value ...`: finds the command, and turns every failure into one line."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from neurofreeze._version import __version__
from neurofreeze.config.explaining import explain, suggest
from neurofreeze.errors import ConfigError, NeuroFreezeError
from neurofreeze.training.stopping import Stopped

COMMANDS = {
    "run": "the whole story: align if need be, select, train, verify, evaluate, report",
    "select": "find the safety neurons and draw the random control",
    "train": "fine-tune each arm, with its neurons frozen",
    "verify": "compare two checkpoints bit by bit: did the frozen neurons stay?",
    "evaluate": "measure refusals, over-refusal, refusal margin and held-out loss",
    "report": "write report.html from what the other stages left; of a sweep's folder, compare its runs",
    "compare": "show how much masks overlap, layer by layer",
    "benchmark": "compare arms over seeds and fine-tuning sets, at equal steps and at equal loss",
    "monitor": "watch the safety neurons over a stream of prompts, beside their reference",
    "audit": "measure how much safety is left under steering, pruning, fine-tuning or an adapter",
    "gate": "fit and calibrate a gate that judges a model's answers as they are written",
    "chat": "talk to a guarded model in the terminal",
    "serve": "put a guarded model behind an OpenAI-compatible endpoint",
    "doctor": "show a model's neurons and this installation",
    "status": "show how a run goes, or every run of a sweep",
    "logs": "show what a run has written last",
    "cancel": "end a run's job, or all jobs of a sweep",
}
# May be given a folder alone, without the name of the setting.
FOLDER_COMMANDS = {"status": "run", "logs": "run", "cancel": "run", "report": "sweep"}

# Hydra's options that are followed by a word, and those that are not.
HYDRA_FLAGS = {"--cfg", "-c", "--info", "-i", "--package", "-p", "--config-dir", "-cd", "--config-name", "-cn"}
HYDRA_FLAGS |= {"--config-path", "-cp"}
HYDRA_SWITCHES = {"--resolve", "--multirun", "-m", "--run", "-r", "--hydra-help"}

USAGE = """usage: neurofreeze COMMAND [key=value ...] [--debug]

Fine-tune an aligned language model without losing its safety.

commands:
{commands}

settings (neurofreeze COMMAND --help lists all of a command's):
  model=PATH-OR-HUB-ID    a checkpoint folder, a GGUF file, a hub id; default smollm2-135m-instruct
  data.train=PATH-OR-ID   fine-tuning data; also data.safety, data.utility, data.harmful, data.lookalikes ...
  fraction=0.15           share of neurons to freeze, in (0, 1]
  seed=0  name=quickstart  hydra.run.dir=runs/quickstart
  neurofreeze verify base=FOLDER tuned=FOLDER mask=FOLDER
  neurofreeze compare masks=FOLDER,FOLDER
  neurofreeze audit intervention=steering steering.recipe=compliance strengths=[0.1,0.2]
  neurofreeze status FOLDER    also logs, cancel

where it runs:
  cluster=local|torchrun|slurm  backend=plain|ddp|fsdp2|zero1|zero2|zero3|zero3_offload
  --multirun a=1,2 b=x,y  every combination, as one job array on Slurm

options:
  --cfg job [--resolve]   print all settings of the command and stop
  --info                  print where they come from and stop
  --config-dir FOLDER     read settings of your own from there too
  --shell-completion install=bash
  --debug                 show the traceback of an error
  --version
  --help                  this; after a COMMAND, its own settings
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 bad arguments, 128 + N: signal N."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"neurofreeze {__version__}")
        return 0
    if {"--shell-completion", "-sc"} & set(arguments):
        return guarded(lambda: int(import_module("neurofreeze.completion").main(arguments)), "run", debug)
    command, overrides = arguments[0], arguments[1:]
    if command not in COMMANDS:
        return _fail(f"no command {command!r}{suggest(command, COMMANDS)}; neurofreeze --help lists them", 2)
    if {"-h", "--help"} & set(overrides):
        return guarded(lambda: int(import_module("neurofreeze.command_help").show(command)), command, debug)
    if command in FOLDER_COMMANDS and overrides and re.match(r"(\w+=|[-~+])", overrides[0]) is None:
        overrides[0] = f"{FOLDER_COMMANDS[command]}={_quoted(overrides[0])}"
    settings: list[str] = []
    options: list[str] = []
    for previous, override in zip(["", *overrides], overrides, strict=False):
        option = override.startswith("-") or previous in HYDRA_FLAGS
        if override.startswith("-") and override.partition("=")[0] not in HYDRA_FLAGS | HYDRA_SWITCHES:
            close = suggest(override, ("--debug", *HYDRA_FLAGS, *HYDRA_SWITCHES))
            return _fail(f"no option {override!r}{close}; neurofreeze --help lists them, settings are key=value", 2)
        if not option and not override.startswith("~") and "=" not in override:
            return _fail(
                f"{override!r} is not a setting; expected key=value. neurofreeze {command} --help lists them", 2
            )
        (options if option else settings).append(override)
    overrides = [*settings, *options]  # Hydra does not read settings on both sides of an option
    return guarded(lambda: int(import_module(f"neurofreeze.commands.{command}").main(overrides)), command, debug)


def guarded(work: Callable[[], int], command: str, debug: bool = False) -> int:
    """Do a command's work; returns the exit code, after one line on stderr that says what went wrong, if it did."""
    try:
        return work()
    except Stopped as stopped:
        return _fail(str(stopped), stopped.code)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from here", 130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explain(error, command)


def _explain(error: Exception, command: str) -> int:
    if isinstance(error, ConfigError):
        return _fail(str(error), 2)
    if isinstance(error, NeuroFreezeError):
        return _fail(str(error), 1)
    if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):
        from neurofreeze.config.commands import SCHEMAS
        from neurofreeze.config.schema import Config

        return _fail(explain(error, SCHEMAS.get(command, Config)), 2)
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error):
        return _fail("no space left on the disk; free some and run the same command again, it goes on from here", 1)
    lines = str(error).strip().splitlines() or [""]
    return _fail(f"unexpected {type(error).__name__}: {lines[0]} (--debug shows where)", 1)


def _quoted(text: str) -> str:
    """A text as Hydra reads it, whatever is in it."""
    return "'" + re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), text) + "'"


def _fail(message: str, code: int) -> int:
    print(f"neurofreeze: {message}", file=sys.stderr)
    return code


def entry() -> None:
    """The console script."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach `main` instead of being printed by Hydra
    sys.exit(main())
