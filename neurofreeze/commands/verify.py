"""neurofreeze verify: compare two checkpoints bit by bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from neurofreeze.commands.settings import compose
from neurofreeze.config.commands import VerifyConfig
from neurofreeze.config.schema import ARMS, HARDENING, UNFROZEN_ARMS
from neurofreeze.console import say
from neurofreeze.errors import RunError

FILE = "verification.json"


def main(overrides: Sequence[str]) -> int:
    """Exit code 0 if every frozen bit is the same, 1 if not, naming each changed parameter."""
    explicit = any(override.startswith("base=") for override in overrides)
    return compose("verify", overrides, _verify, "verify", needs_folder=not explicit)


def _verify(config: VerifyConfig, folder: Path, _: str) -> int:
    if config.base and config.tuned and config.mask:
        output = Path(config.output) if config.output else Path(config.tuned) / FILE
        return _compare(config.base, config.tuned, config.mask, output)
    known = dict.fromkeys((*ARMS, *chain.from_iterable(HARDENING.values())))
    arms = [arm for arm in known if arm not in UNFROZEN_ARMS and (folder / "arms" / arm).is_dir()]
    if not arms:
        raise RunError(
            f"{folder} has no trained arm to verify; run `neurofreeze train` first, or give base=, tuned=, mask="
        )
    codes = []
    for arm in arms:
        tuned = folder / "arms" / arm
        codes.append(_compare(_start(folder), tuned, folder / "selection" / arm, tuned / FILE))
    return max(codes)


def _start(folder: Path) -> Path:
    from neurofreeze.models.resolve import resolve

    path = folder / "stages" / "align.json"
    if not path.is_file():
        raise RunError(f"{path} is gone, which says what the arms began with; give base=, tuned= and mask=")
    marker = json.loads(path.read_text(encoding="utf-8"))
    if marker["result"]["aligned"]:
        return folder / "aligned"
    return resolve(marker["settings"]["model"], marker["settings"]["revision"]).folder


def _compare(base: str | Path, tuned: str | Path, mask: str | Path, output: Path) -> int:
    from neurofreeze.console import quiet_transformers
    from neurofreeze.verification import verify

    quiet_transformers()
    found = verify(base, tuned, mask)
    found.save(output)
    say(f"{tuned}: {found}")
    for check in found.broken:
        say(f"  {check.name}: {check.changed:,} of {check.frozen:,} frozen elements changed")
    for name in found.only_in_one:
        say(f"  {name}: in only one of the checkpoints, not compared")
    say(f"details: {output}")
    return 0 if found.ok else 1
