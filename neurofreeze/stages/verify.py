"""Verify: compare an arm's checkpoint with the start bit by bit, from the files alone."""

from __future__ import annotations

from typing import Any

from neurofreeze.config.schema import HARDENING
from neurofreeze.console import say, stage
from neurofreeze.errors import FreezeError
from neurofreeze.stages.context import Run, parameters
from neurofreeze.stages.folder import settings_digest
from neurofreeze.verification import verify

FILE = "verification.json"


def run(run: Run, arm: str) -> None:
    """Verify one arm; the method's own verification.json also stands at the top of the run folder.

    Raises:
        FreezeError: if a frozen bit differs.
    """
    _once(run, arm)


def outcome(run: Run, arm: str) -> dict[str, Any]:
    """What was found of an arm, which is verified now if it was not since it was trained."""
    if run.folder.settings(f"verify-{arm}") != _settings(run, arm):
        _once(run, arm)
    return run.folder.required(f"verify-{arm}", "run")


def _once(run: Run, arm: str) -> None:
    run.folder.required(f"train-{arm}", "train")
    run.folder.run(f"verify-{arm}", _settings(run, arm), lambda: _verify(run, arm), run.arm(arm) / FILE)


def _settings(run: Run, arm: str) -> dict[str, Any]:
    return {"train": settings_digest(run.train_settings(arm))}


def _verify(run: Run, arm: str) -> dict[str, Any]:
    with stage(f"verify {arm}", parameters(run.start)) as bar:
        found = verify(run.start, run.arm(arm), run.mask(arm), bar.advance)
    found.save(run.arm(arm) / FILE)
    if arm == HARDENING.get(run.config.method.name, ("safety",))[0]:
        found.save(run.folder.path / FILE)
    say(f"verify {arm}: {found}")
    if not found.ok:
        raise FreezeError(f"{found.changed:,} frozen elements of arm {arm} changed; see {run.arm(arm) / FILE}")
    return {"frozen": found.frozen, "changed": found.changed, "fingerprint": found.tuned_fingerprint}
