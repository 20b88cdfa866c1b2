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
    run.folder.required(f"train-{arm}", "train")
    settings = {"train": settings_digest(run.train_settings(arm))}
    run.folder.run(f"verify-{arm}", settings, lambda: _verify(run, arm), run.arm(arm) / FILE)


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
